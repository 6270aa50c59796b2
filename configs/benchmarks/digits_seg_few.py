# Segmentation on DigitScenes with labels for 100 scenes; the teacher learnt from 2,000.
_base_ = 'digits_seg.py'

options = {
    'train_dataloader.dataset.indices': 100,
    'max_iters': 800,
    'train_cfg.max_iters': 800,
    'train_cfg.val_interval': 800,
    'param_scheduler.1.T_max': 800,
    'default_hooks.checkpoint.interval': 800,
}
# The weights are those of digits_seg, without another search.
rows = dict(
    _delete_=True,
    student=_base_.rows.student,
    cwd=_base_.rows.cwd,
    dist=_base_.rows.dist,
    dist_half=dict(
        method='dist',
        options={
            **_base_.rows.dist.options,
            'max_iters': 400,
            'train_cfg.max_iters': 400,
            'train_cfg.val_interval': 400,
            'param_scheduler.1.T_max': 400,
            'default_hooks.checkpoint.interval': 400,
        },
        seeds=[0, 1, 2, 3, 4],
        note='half of the iterations of the other rows',
    ),
)
tuning = None
