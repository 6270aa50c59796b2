# All three terms of SKD: pixel-wise, pair-wise and holistic.
_base_ = 'mmseg::pspnet/pspnet_r18-d8_4xb2-80k_cityscapes-512x1024.py'

sources = dict(features='decode_head.bottleneck', logits='decode_head.conv_seg')
logits = dict(student='student.logits', teacher='teacher.logits')
model = dict(
    _delete_=True,
    type='kdtoolbox.Distiller',
    student=_base_.model,
    teacher=dict(
        config='mmseg::pspnet/pspnet_r101-d8_4xb2-80k_cityscapes-512x1024.py',
        checkpoint='https://mmassets.onedl.ai/mmsegmentation/v0.5/pspnet/pspnet_r101-d8_512x1024_80k_cityscapes/pspnet_r101-d8_512x1024_80k_cityscapes_20200606_112211-e1e1100f.pth',
    ),
    recorders=dict(student=sources, teacher=sources),
    losses=dict(
        loss_kd=dict(type='KDLoss', **logits, loss_weight=10.0),
        loss_pairwise=dict(
            type='SKDPairwiseLoss',
            student='student.features',
            teacher='teacher.features',
        ),
        loss_holistic=dict(
            type='SKDHolisticLoss', **logits, num_classes=19, critic_weight=0.004
        ),
    ),
)
