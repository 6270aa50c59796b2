# FSP from the third to the fourth stage, with a weight published for classification.
_base_ = 'mmseg::pspnet/pspnet_r18-d8_4xb2-80k_cityscapes-512x1024.py'
stages = dict(start='backbone.layer3', end='backbone.layer4')
conv = dict(type='ConvConnector')

model = dict(
    _delete_=True,
    type='kdtoolbox.Distiller',
    student=_base_.model,
    teacher=dict(
        config='mmseg::pspnet/pspnet_r101-d8_4xb2-80k_cityscapes-512x1024.py',
        checkpoint='https://mmassets.onedl.ai/mmsegmentation/v0.5/pspnet/pspnet_r101-d8_512x1024_80k_cityscapes/pspnet_r101-d8_512x1024_80k_cityscapes_20200606_112211-e1e1100f.pth',
    ),
    recorders=dict(student=stages, teacher=stages),
    connectors=dict(
        start=dict(conv, input='student.start', in_channels=256, out_channels=1024),
        end=dict(conv, input='student.end', in_channels=512, out_channels=2048),
    ),
    losses=dict(
        loss_fsp=dict(
            type='FSPLoss',
            student='start',
            student_end='end',
            teacher='teacher.start',
            teacher_end='teacher.end',
            loss_weight=50.0,
        )
    ),
)
