# Detection on DigitScenes with labels for 100 scenes; the teacher learnt from 2,000.
_base_ = ['digits_det.py', 'schedules/iterations_800.py']

options = {'train_dataloader.dataset.indices': 100}
half = {name: 400 for name in _base_.options}
# The weights are those of digits_det, without another search.
rows = dict(
    _delete_=True,
    student=_base_.rows.student,
    ld=_base_.rows.ld,
    ld_crosskd=_base_.rows.ld_crosskd,
    student_half=dict(
        options=half,
        seeds=[0, 1, 2, 3, 4],
        note='alone, with half of the iterations of the other rows',
    ),
    ld_half=dict(
        method='ld',
        options={**_base_.rows.ld.options, **half},
        seeds=[0, 1, 2, 3, 4],
        note='half of the iterations of the other rows',
    ),
    ld_crosskd_half=dict(
        config=_base_.rows.ld_crosskd.config,
        options=half,
        seeds=[0, 1, 2, 3, 4],
        note='half of the iterations of the other rows',
    ),
)
tuning = None
# Not a key of a suite.
del half
