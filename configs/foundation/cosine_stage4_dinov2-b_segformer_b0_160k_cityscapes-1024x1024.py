# The same from DINOv2-B to the last stage of SegFormer's encoder.
_base_ = 'mmseg::segformer/segformer_mit-b0_8xb1-160k_cityscapes-1024x1024.py'

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
    recorders=dict(student=dict(stages='backbone'), teacher=dict(maps='maps')),
    connectors=dict(
        stage4=dict(type='LevelsConnector', input='student.stages', levels=[3]),
        aligned=dict(
            type='ConvConnector', input='stage4', in_channels=256, out_channels=768
        ),
        tokens=dict(type='ResizeConnector', input='teacher.maps', like='stage4'),
    ),
    losses=dict(
        loss_cosine=dict(type='AngularLoss', student='aligned', teacher='tokens')
    ),
)
share = dict(loss_cosine=0.11)
custom_hooks = [dict(type='kdtoolbox.LossBalanceHook', shares=share, band=0.01)]
