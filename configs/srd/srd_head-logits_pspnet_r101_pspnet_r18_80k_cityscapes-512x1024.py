# SRD on the features before the logits, and KL on the logits, with published weights.
_base_ = 'mmseg::pspnet/pspnet_r18-d8_4xb2-80k_cityscapes-512x1024.py'
wires = dict(feature='decode_head.bottleneck', logits='decode_head.conv_seg')

model = dict(
    _delete_=True,
    type='kdtoolbox.Distiller',
    student=_base_.model,
    teacher=dict(
        config='mmseg::pspnet/pspnet_r101-d8_4xb2-80k_cityscapes-512x1024.py',
        checkpoint='https://mmassets.onedl.ai/mmsegmentation/v0.5/pspnet/pspnet_r101-d8_512x1024_80k_cityscapes/pspnet_r101-d8_512x1024_80k_cityscapes_20200606_112211-e1e1100f.pth',
    ),
    recorders=dict(student=wires, teacher=wires),
    connectors=dict(
        projected=dict(
            type='ConvConnector',
            input='student.feature',
            in_channels=128,
            out_channels=512,
            norm_cfg=dict(type='BN', affine=False),
        ),
        normalized=dict(type='NormConnector', input='teacher.feature'),
    ),
    losses=dict(
        loss_srd=dict(type='SRDLoss', student='projected', teacher='normalized'),
        loss_kd=dict(type='KDLoss', student='student.logits', teacher='teacher.logits'),
    ),
)
