# CIRKD before the classifier, within the batch and against a memory, plus logit KD.
_base_ = 'mmseg::mobilenet_v2/mobilenet-v2-d8_deeplabv3_4xb2-80k_cityscapes-512x1024.py'

places = dict(logits='decode_head.conv_seg', features='decode_head.bottleneck')
features = dict(student='student.features', teacher='teacher.features')
model = dict(
    _delete_=True,
    type='kdtoolbox.Distiller',
    student=_base_.model,
    teacher=dict(
        config='mmseg::deeplabv3/deeplabv3_r101-d8_4xb2-80k_cityscapes-512x1024.py',
        checkpoint='https://mmassets.onedl.ai/mmsegmentation/v0.5/deeplabv3/deeplabv3_r101-d8_512x1024_80k_cityscapes/deeplabv3_r101-d8_512x1024_80k_cityscapes_20200606_113503-9e428899.pth',
    ),
    recorders=dict(student=places, teacher=places),
    losses=dict(
        loss_kd=dict(type='KDLoss', student='student.logits', teacher='teacher.logits'),
        loss_mini_batch=dict(type='CIRKDMiniBatchLoss', **features),
        loss_memory=dict(
            type='CIRKDMemoryLoss',
            num_classes=19,
            student_channels=512,
            teacher_channels=512,
            **features,
        ),
    ),
)
