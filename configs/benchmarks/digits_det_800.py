# Detection on DigitScenes with twice the iterations of digits_det.
_base_ = ['digits_det.py', 'schedules/iterations_800.py']

rows = dict(_delete_=True, student=_base_.rows.student, ld=_base_.rows.ld)
tuning = None
