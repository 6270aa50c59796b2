# CWD on the logits, with the temperature and weight of the paper.
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
        student=dict(logits='decode_head.conv_seg'),
        teacher=dict(logits='decode_head.conv_seg'),
    ),
    losses=dict(
        loss_cwd=dict(
            type='CWDLoss',
            student='student.logits',
            teacher='teacher.logits',
            tau=4.0,
            loss_weight=3.0,
        )
    ),
)
