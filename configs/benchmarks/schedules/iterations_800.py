# Twice the iterations of the students in configs/digits.
options = {
    'max_iters': 800,
    'train_cfg.max_iters': 800,
    'train_cfg.val_interval': 800,
    'param_scheduler.1.T_max': 800,
    'default_hooks.checkpoint.interval': 800,
}
