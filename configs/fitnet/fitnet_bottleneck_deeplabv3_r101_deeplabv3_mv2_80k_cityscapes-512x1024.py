# FitNet on the features before the classifier.
_base_ = 'mmseg::mobilenet_v2/mobilenet-v2-d8_deeplabv3_4xb2-80k_cityscapes-512x1024.py'

places = dict(features='decode_head.bottleneck')
features = dict(student='regressed', teacher='teacher.features')
model = dict(
    _delete_=True,
    type='kdtoolbox.Distiller',
    student=_base_.model,
    teacher=dict(
        config='mmseg::deeplabv3/deeplabv3_r101-d8_4xb2-80k_cityscapes-512x1024.py',
        checkpoint='https://mmassets.onedl.ai/mmsegmentation/v0.5/deeplabv3/deeplabv3_r101-d8_512x1024_80k_cityscapes/deeplabv3_r101-d8_512x1024_80k_cityscapes_20200606_113503-9e428899.pth',
    ),
    recorders=dict(student=places, teacher=places),
    connectors=dict(
        regressed=dict(
            type='ConvConnector',
            input='student.features',
            in_channels=512,
            out_channels=512,
        )
    ),
    losses=dict(
        loss_fitnet=dict(type='FitNetLoss', loss_weight=10.0, **features),
    ),
)
