# SemCKD on the last three stages, with CIRKD's weight for a plain feature hint.
_base_ = 'mmseg::pspnet/pspnet_r18-d8_4xb2-80k_cityscapes-512x1024.py'
stages = dict(stages='backbone.layer[2-4]')

model = dict(
    _delete_=True,
    type='kdtoolbox.Distiller',
    student=_base_.model,
    teacher=dict(
        config='mmseg::pspnet/pspnet_r101-d8_4xb2-80k_cityscapes-512x1024.py',
        checkpoint='https://mmassets.onedl.ai/mmsegmentation/v0.5/pspnet/pspnet_r101-d8_512x1024_80k_cityscapes/pspnet_r101-d8_512x1024_80k_cityscapes_20200606_112211-e1e1100f.pth',
    ),
    recorders=dict(student=stages, teacher=stages),
    losses=dict(
        loss_semckd=dict(
            type='SemCKDLoss',
            student='student.stages',
            teacher='teacher.stages',
            student_channels=[128, 256, 512],
            teacher_channels=[512, 1024, 2048],
            pool_size=4,
            loss_weight=10.0,
        )
    ),
)
