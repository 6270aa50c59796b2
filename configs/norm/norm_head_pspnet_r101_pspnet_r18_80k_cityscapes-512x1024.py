# NORM with four copies of the feature before the logits; the weight is not tried.
_base_ = 'mmseg::pspnet/pspnet_r18-d8_4xb2-80k_cityscapes-512x1024.py'
head = dict(feature='decode_head.bottleneck')

model = dict(
    _delete_=True,
    type='kdtoolbox.Distiller',
    student=_base_.model,
    teacher=dict(
        config='mmseg::pspnet/pspnet_r101-d8_4xb2-80k_cityscapes-512x1024.py',
        checkpoint='https://mmassets.onedl.ai/mmsegmentation/v0.5/pspnet/pspnet_r101-d8_512x1024_80k_cityscapes/pspnet_r101-d8_512x1024_80k_cityscapes_20200606_112211-e1e1100f.pth',
    ),
    recorders=dict(student=head, teacher=head),
    connectors=dict(
        expanded=dict(
            type='ConvConnector',
            input='student.feature',
            in_channels=128,
            out_channels=4 * 512,
            norm_cfg=dict(type='BN'),
        )
    ),
    losses=dict(
        loss_norm=dict(type='NORMLoss', student='expanded', teacher='teacher.feature')
    ),
)
