# Stage 1 of MasKD: the tokens of the shipped teacher's neck, without a student.
_base_ = 'det_student.py'

model = dict(
    _delete_=True,
    type='kdtoolbox.TokenTrainer',
    teacher=dict(config='det_teacher.py', checkpoint='det_teacher.safetensors'),
    channels=64,
    num_levels=4,
    num_tokens=6,
)
max_iters = 400
train_cfg = dict(max_iters=max_iters)
optim_wrapper = dict(
    optimizer=dict(_delete_=True, type='SGD', lr=0.1, momentum=0.9, weight_decay=0.0001)
)
param_scheduler = [
    dict(type='LinearLR', start_factor=0.01, by_epoch=False, end=50),
    dict(type='CosineAnnealingLR', T_max=max_iters, by_epoch=False),
]
default_hooks = dict(checkpoint=dict(interval=max_iters))
# No validation: the teacher's score does not change.
val_dataloader = val_cfg = val_evaluator = None
