# Detection on DigitScenes with twice the iterations of digits_det.
_base_ = 'digits_det.py'

seeds = [0, 1, 2, 3, 4]
options = {
    'max_iters': 800,
    'train_cfg.max_iters': 800,
    'train_cfg.val_interval': 800,
    'param_scheduler.1.T_max': 800,
    'default_hooks.checkpoint.interval': 800,
}
rows = dict(
    _delete_=True,
    student=dict(),
    ld=dict(
        method='ld',
        options={
            'model.losses.loss_ld.loss_weight': 0.2,
            'model.losses.loss_ld_cls.loss_weight': 2.0,
        },
    ),
)
tuning = None
