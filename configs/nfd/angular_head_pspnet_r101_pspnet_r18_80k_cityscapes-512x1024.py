# Angular distillation of the head's last feature; unverified.
_base_ = 'mmseg::pspnet/pspnet_r18-d8_4xb2-80k_cityscapes-512x1024.py'

widths = dict(in_channels=128, out_channels=512)
model = dict(
    _delete_=True,
    type='kdtoolbox.Distiller',
    student=_base_.model,
    teacher=dict(
        config='mmseg::pspnet/pspnet_r101-d8_4xb2-80k_cityscapes-512x1024.py',
        checkpoint='https://mmassets.onedl.ai/mmsegmentation/v0.5/pspnet/pspnet_r101-d8_512x1024_80k_cityscapes/pspnet_r101-d8_512x1024_80k_cityscapes_20200606_112211-e1e1100f.pth',
    ),
    recorders=dict(
        student=dict(head='decode_head.bottleneck'),
        teacher=dict(head='decode_head.bottleneck'),
    ),
    connectors=dict(aligned=dict(type='ConvConnector', input='student.head', **widths)),
    losses=dict(
        loss_angular=dict(
            type='AngularLoss',
            student='aligned',
            teacher='teacher.head',
            loss_weight=10.0,
        )
    ),
)
