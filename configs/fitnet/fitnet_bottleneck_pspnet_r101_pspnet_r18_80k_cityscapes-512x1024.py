# FitNet on the features before the classifier.
_base_ = 'mmseg::pspnet/pspnet_r18-d8_4xb2-80k_cityscapes-512x1024.py'

places = dict(features='decode_head.bottleneck')
features = dict(student='regressed', teacher='teacher.features')
model = dict(
    _delete_=True,
    type='kdtoolbox.Distiller',
    student=_base_.model,
    teacher=dict(
        config='mmseg::pspnet/pspnet_r101-d8_4xb2-80k_cityscapes-512x1024.py',
        checkpoint='https://mmassets.onedl.ai/mmsegmentation/v0.5/pspnet/pspnet_r101-d8_512x1024_80k_cityscapes/pspnet_r101-d8_512x1024_80k_cityscapes_20200606_112211-e1e1100f.pth',
    ),
    recorders=dict(student=places, teacher=places),
    connectors=dict(
        regressed=dict(
            type='ConvConnector',
            input='student.features',
            in_channels=128,
            out_channels=512,
        )
    ),
    losses=dict(
        loss_fitnet=dict(type='FitNetLoss', loss_weight=10.0, **features),
    ),
)
