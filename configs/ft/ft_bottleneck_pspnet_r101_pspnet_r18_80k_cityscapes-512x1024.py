# FT on the feature before the classifier, with factors of half the teacher's width.
_base_ = 'mmseg::pspnet/pspnet_r18-d8_4xb2-80k_cityscapes-512x1024.py'
place = dict(bottleneck='decode_head.bottleneck')
wires = dict(student='translated', teacher='teacher.bottleneck')
sizes = dict(teacher_channels=512, factor_channels=256)

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
        translated=dict(
            type='TranslatorConnector',
            input='student.bottleneck',
            in_channels=128,
            out_channels=256,
        )
    ),
    losses=dict(
        loss_ft=dict(wires, type='FTLoss', **sizes, loss_weight=200.0),
    ),
)
