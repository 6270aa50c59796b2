# The two-stage teacher: twice as wide, from the backbone of det_teacher, and trained
# longer.
_base_ = 'frcnn_student.py'

model = dict(
    backbone=dict(
        base_channels=32,
        stem_channels=32,
        init_cfg=dict(checkpoint='{{fileDirname}}/backbone_32.pth'),
    ),
    neck=dict(in_channels=[32, 64, 128], out_channels=64),
    rpn_head=dict(in_channels=64, feat_channels=64),
    roi_head=dict(
        bbox_roi_extractor=dict(out_channels=64),
        bbox_head=dict(in_channels=64, fc_out_channels=128),
    ),
)

max_iters = 1200
train_cfg = dict(max_iters=max_iters, val_interval=600)
param_scheduler = [
    dict(type='LinearLR', start_factor=0.01, by_epoch=False, end=50),
    dict(type='CosineAnnealingLR', T_max=max_iters, by_epoch=False, eta_min=1e-5),
]
default_hooks = dict(checkpoint=dict(interval=600))
