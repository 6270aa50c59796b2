# Channel distillation and guided KD, with weights published for classification.
_base_ = 'mmseg::pspnet/pspnet_r18-d8_4xb2-80k_cityscapes-512x1024.py'
wires = dict(feature='decode_head.bottleneck', logits='decode_head.conv_seg')
conv = dict(type='ConvConnector', in_channels=128, out_channels=512)

model = dict(
    _delete_=True,
    type='kdtoolbox.Distiller',
    student=_base_.model,
    teacher=dict(
        config='mmseg::pspnet/pspnet_r101-d8_4xb2-80k_cityscapes-512x1024.py',
        checkpoint='https://mmassets.onedl.ai/mmsegmentation/v0.5/pspnet/pspnet_r101-d8_512x1024_80k_cityscapes/pspnet_r101-d8_512x1024_80k_cityscapes_20200606_112211-e1e1100f.pth',
    ),
    recorders=dict(student=wires, teacher=wires),
    connectors=dict(aligned=dict(conv, input='student.feature')),
    losses=dict(
        loss_channel=dict(
            type='ChannelDistillationLoss', student='aligned', teacher='teacher.feature'
        ),
        loss_guided=dict(
            type='GuidedKDLoss', student='student.logits', teacher='teacher.logits'
        ),
    ),
)
