# The cosine loss of RT-DETRv4 from DINOv2-B to P5, at its share of the gradient.
_base_ = 'mmdet::gfl/gfl_r50_fpn_1x_coco.py'

model = dict(
    _delete_=True,
    type='kdtoolbox.Distiller',
    student=_base_.model,
    teacher=dict(
        type='FoundationTeacher',
        model='transformers::facebook/dinov2-base',
        pretrained=True,
        # One token of 14 pixels for each cell of stride 32.
        view=dict(scale=14 / 32),
    ),
    recorders=dict(student=dict(fpn='neck'), teacher=dict(maps='maps')),
    connectors=dict(
        p5=dict(type='LevelsConnector', input='student.fpn', levels=[2]),
        aligned=dict(
            type='ConvConnector', input='p5', in_channels=256, out_channels=768
        ),
        tokens=dict(type='ResizeConnector', input='teacher.maps', like='p5'),
    ),
    losses=dict(
        loss_cosine=dict(type='AngularLoss', student='aligned', teacher='tokens')
    ),
)
share = dict(loss_cosine=0.11)
custom_hooks = [dict(type='kdtoolbox.LossBalanceHook', shares=share, band=0.01)]
