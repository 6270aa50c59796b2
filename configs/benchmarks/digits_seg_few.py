# Segmentation on DigitScenes with labels for 100 scenes; the teacher learnt from 2,000.
_base_ = ['digits_seg.py', 'schedules/iterations_800.py']

options = {'train_dataloader.dataset.indices': 100}
half = {name: 400 for name in _base_.options}
# The weights are those of digits_seg, without another search.
rows = dict(
    _delete_=True,
    student=_base_.rows.student,
    cwd=_base_.rows.cwd,
    dist=_base_.rows.dist,
    student_half=dict(
        options=half,
        seeds=[0, 1, 2, 3, 4],
        note='alone, with half of the iterations of the other rows',
    ),
    cwd_half=dict(
        method='cwd',
        options={**_base_.rows.cwd.options, **half},
        seeds=[0, 1, 2, 3, 4],
        note='half of the iterations of the other rows',
    ),
    dist_half=dict(
        method='dist',
        options={**_base_.rows.dist.options, **half},
        seeds=[0, 1, 2, 3, 4],
        note='half of the iterations of the other rows',
    ),
)
tuning = None
# Not a key of a suite.
del half
