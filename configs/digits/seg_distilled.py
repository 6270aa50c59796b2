# The same student, schedule and data order, with CWD on the logits.
_base_ = 'seg_student.py'

model = dict(
    _delete_=True,
    type='kdtoolbox.Distiller',
    student=_base_.model,
    teacher=dict(
        config='seg_teacher.py',
        checkpoint='seg_teacher.safetensors',
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
            loss_weight=0.6,
        )
    ),
)
