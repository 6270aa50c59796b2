# The same from DINOv2-B to the last level of RTMDet-s' encoder.
_base_ = 'mmdet::rtmdet/rtmdet_s_8xb32-300e_coco.py'

model = dict(
    _delete_=True,
    type='kdtoolbox.Distiller',
    student=_base_.model,
    teacher=dict(
        type='FoundationTeacher',
        model='transformers::facebook/dinov2-base',
        pretrained=True,
        view=dict(scale=14 / 32),
    ),
    recorders=dict(student=dict(fpn='neck'), teacher=dict(maps='maps')),
    connectors=dict(
        p5=dict(type='LevelsConnector', input='student.fpn', levels=[2]),
        aligned=dict(
            type='ConvConnector', input='p5', in_channels=128, out_channels=768
        ),
        tokens=dict(type='ResizeConnector', input='teacher.maps', like='p5'),
    ),
    losses=dict(
        loss_cosine=dict(type='AngularLoss', student='aligned', teacher='tokens')
    ),
)
share = dict(loss_cosine=0.11)
balance = dict(type='kdtoolbox.LossBalanceHook', shares=share, band=0.01)
custom_hooks = [*_base_.custom_hooks, balance]
