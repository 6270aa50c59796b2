# CWD on normalised neck features; it stops for the last 20 epochs, without mosaic.
_base_ = 'mmdet::rtmdet/rtmdet_s_8xb32-300e_coco.py'

norm = dict(type='BN', affine=False, track_running_stats=False)
project = dict(type='ConvConnector', in_channels=[128] * 3, norm_cfg=norm)
sources = dict(fpn='neck.out_convs.*.conv')
model = dict(
    _delete_=True,
    type='kdtoolbox.Distiller',
    student=_base_.model,
    teacher=dict(
        config='mmdet::rtmdet/rtmdet_m_8xb32-300e_coco.py',
        checkpoint='https://download.openmmlab.com/mmdetection/v3.0/rtmdet/rtmdet_m_8xb32-300e_coco/rtmdet_m_8xb32-300e_coco_20220719_112220-229f527c.pth',
    ),
    recorders=dict(student=sources, teacher=sources),
    connectors=dict(
        projected=dict(**project, input='student.fpn', out_channels=192),
        normalised=dict(type='NormConnector', input='teacher.fpn'),
    ),
    losses=dict(
        loss_cwd=dict(type='CWDLoss', student='projected', teacher='normalised')
    ),
)
stop = dict(type='kdtoolbox.LossWeightHook', loss='loss_cwd', by_epoch=True)
custom_hooks = [
    *_base_.custom_hooks,
    dict(**stop, stop_after=280),
]
