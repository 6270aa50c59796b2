# CWD before the classifier, where student and teacher have the same width.
_base_ = 'mmseg::segformer/segformer_mit-b0_8xb1-160k_cityscapes-1024x1024.py'

model = dict(
    _delete_=True,
    type='kdtoolbox.Distiller',
    student=_base_.model,
    teacher=dict(
        config='mmseg::segformer/segformer_mit-b2_8xb1-160k_cityscapes-1024x1024.py',
        checkpoint='https://mmassets.onedl.ai/mmsegmentation/v0.5/segformer/segformer_mit-b2_8x1_1024x1024_160k_cityscapes/segformer_mit-b2_8x1_1024x1024_160k_cityscapes_20211207_134205-6096669a.pth',
    ),
    recorders=dict(
        student=dict(features='decode_head.fusion_conv'),
        teacher=dict(features='decode_head.fusion_conv'),
    ),
    losses=dict(
        loss_cwd=dict(
            type='CWDLoss',
            student='student.features',
            teacher='teacher.features',
            tau=4.0,
            loss_weight=50.0,
        )
    ),
)
