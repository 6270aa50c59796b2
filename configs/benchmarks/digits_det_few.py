# Detection on DigitScenes with labels for 250 scenes; the teacher learnt from 2,000.
_base_ = 'digits_det.py'

options = {
    'train_dataloader.dataset.indices': 250,
    'max_iters': 800,
    'train_cfg.max_iters': 800,
    'train_cfg.val_interval': 800,
    'param_scheduler.1.T_max': 800,
    'default_hooks.checkpoint.interval': 800,
}
rows = dict(
    ld_half=dict(
        method='ld',
        options={
            'model.losses.loss_ld.loss_weight': 0.2,
            'model.losses.loss_ld_cls.loss_weight': 2.0,
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
