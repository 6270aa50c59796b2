# SP on 4 x 4 parts of each map, with the published weight for classification.
_base_ = 'mmseg::pspnet/pspnet_r18-d8_4xb2-80k_cityscapes-512x1024.py'

model = dict(
    _delete_=True,
    type='kdtoolbox.Distiller',
    student=_base_.model,
    teacher=dict(
        config='mmseg::pspnet/pspnet_r101-d8_4xb2-80k_cityscapes-512x1024.py',
        checkpoint='https://mmassets.onedl.ai/mmsegmentation/v0.5/pspnet/pspnet_r101-d8_512x1024_80k_cityscapes/pspnet_r101-d8_512x1024_80k_cityscapes_20200606_112211-e1e1100f.pth',
    ),
    recorders=dict(
        student=dict(bottleneck='decode_head.bottleneck'),
        teacher=dict(bottleneck='decode_head.bottleneck'),
    ),
    losses=dict(
        loss_sp=dict(
            type='SPLoss',
            student='student.bottleneck',
            teacher='teacher.bottleneck',
            grid=4,
            loss_weight=3000.0,
        )
    ),
)
