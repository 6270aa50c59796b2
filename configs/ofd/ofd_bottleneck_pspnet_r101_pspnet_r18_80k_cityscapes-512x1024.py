# OFD before the bottleneck's ReLU; the margins come from its batch norm.
_base_ = 'mmseg::pspnet/pspnet_r18-d8_4xb2-80k_cityscapes-512x1024.py'
place = dict(before='decode_head.bottleneck.bn')
wires = dict(student='aligned', teacher='teacher.before', margin='margin.before')

model = dict(
    _delete_=True,
    type='kdtoolbox.Distiller',
    student=_base_.model,
    teacher=dict(
        config='mmseg::pspnet/pspnet_r101-d8_4xb2-80k_cityscapes-512x1024.py',
        checkpoint='https://mmassets.onedl.ai/mmsegmentation/v0.5/pspnet/pspnet_r101-d8_512x1024_80k_cityscapes/pspnet_r101-d8_512x1024_80k_cityscapes_20200606_112211-e1e1100f.pth',
    ),
    sources=[dict(type='PreActivations')],
    recorders=dict(student=place, teacher=place),
    connectors=dict(
        aligned=dict(
            type='ConvConnector',
            input='student.before',
            in_channels=128,
            out_channels=512,
            norm_cfg=dict(type='BN'),
        )
    ),
    losses=dict(loss_ofd=dict(wires, type='OFDLoss', loss_weight=2.5e-7)),
)
