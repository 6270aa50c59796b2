# The teacher for segmentation: twice as wide, a longer schedule, more augmentation.
_base_ = 'seg_student.py'

model = dict(
    backbone=dict(
        base_channels=32,
        stem_channels=32,
        init_cfg=dict(checkpoint='{{fileDirname}}/backbone_32.pth'),
    ),
    neck=dict(in_channels=[32, 64, 128], out_channels=64),
    decode_head=dict(in_channels=[64, 64, 64], channels=64),
)
train_dataloader = dict(
    dataset=dict(
        pipeline=[
            dict(type='LoadImageFromFile'),
            dict(type='LoadAnnotations'),
            dict(
                type='RandomResize',
                scale=(128, 128),
                ratio_range=(0.8, 1.3),
                keep_ratio=True,
            ),
            dict(type='RandomCrop', crop_size=(128, 128)),
            dict(type='RandomRotate', prob=0.5, degree=8.0, pad_val=0, seg_pad_val=255),
            dict(type='PhotoMetricDistortion'),
            dict(type='PackSegInputs'),
        ]
    )
)

max_iters = 1000
train_cfg = dict(max_iters=max_iters, val_interval=500)
param_scheduler = [
    dict(type='LinearLR', start_factor=0.01, by_epoch=False, end=50),
    dict(type='CosineAnnealingLR', T_max=max_iters, by_epoch=False, eta_min=1e-5),
]
default_hooks = dict(checkpoint=dict(interval=500))
