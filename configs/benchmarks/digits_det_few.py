# Detection on DigitScenes with labels for 250 scenes; the teacher learnt from 2,000.
_base_ = ['digits_det.py', 'schedules/iterations_800.py']

options = {'train_dataloader.dataset.indices': 250}
half = {name: 400 for name in _base_.options}
# The weights are those of digits_det, without another search.
rows = dict(
    _delete_=True,
    student=_base_.rows.student,
    cwd=dict(method='cwd', options=_base_.rows.cwd.options, seeds=[0, 1, 2, 3, 4]),
    fgd=dict(
        method='fgd',
        options=_base_.rows.fgd.options,
        note='with this weight its loss is 3 % of the whole',
    ),
    pkd=dict(method='pkd', options=_base_.rows.pkd.options, seeds=[0, 1, 2, 3, 4]),
    crosskd=dict(
        method='crosskd',
        options=_base_.rows.crosskd.options,
        note='ahead on each of three seeds, by 1.1 to 3.5',
    ),
    mgd=dict(
        method='mgd',
        options=_base_.rows.mgd.options,
        note='ahead on each of three seeds, but on two by 0.2 or less',
    ),
    ld=_base_.rows.ld,
    ld_half=dict(
        method='ld',
        options={**_base_.rows.ld.options, **half},
        seeds=[0, 1, 2, 3, 4],
        note='half of the iterations of the other rows',
    ),
    pretrained=dict(
        config=_base_.rows.pretrained.config,
        seeds=[0, 1, 2, 3, 4],
        note='after 400 iterations on all 2,000 scenes without labels, not counted',
    ),
)
tuning = None
# Not a key of a suite.
del half
