# VID on the features before the classifier; each channel has a learned variance.
_base_ = 'mmseg::pspnet/pspnet_r18-d8_4xb2-80k_cityscapes-512x1024.py'
place = dict(bottleneck='decode_head.bottleneck')
wires = dict(student='predicted', teacher='teacher.bottleneck')

model = dict(
    _delete_=True,
    type='kdtoolbox.Distiller',
    student=_base_.model,
    teacher=dict(
        config='mmseg::pspnet/pspnet_r101-d8_4xb2-80k_cityscapes-512x1024.py',
        checkpoint='https://mmassets.onedl.ai/mmsegmentation/v0.5/pspnet/pspnet_r101-d8_512x1024_80k_cityscapes/pspnet_r101-d8_512x1024_80k_cityscapes_20200606_112211-e1e1100f.pth',
    ),
    recorders=dict(student=place, teacher=place),
    connectors=dict(
        predicted=dict(
            type='RegressorConnector',
            input='student.bottleneck',
            in_channels=128,
            out_channels=512,
        )
    ),
    losses=dict(loss_vid=dict(wires, type='VIDLoss', channels=512, loss_weight=1.0)),
)
