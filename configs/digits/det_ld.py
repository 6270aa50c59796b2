# The same student, distilled with LD on box distributions and classes of the head.
_base_ = 'det_distilled.py'

sources = dict(cls='bbox_head.gfl_cls', reg='bbox_head.scales.*')
model = dict(
    _delete_=True,
    type='kdtoolbox.Distiller',
    student=_base_.model.student,
    teacher=_base_.model.teacher,
    recorders=dict(student=sources, teacher=sources),
    losses=dict(
        loss_ld=dict(
            type='LDLoss',
            student='student.reg',
            teacher='teacher.reg',
            student_cls='student.cls',
            loss_weight=0.2,
        ),
        loss_ld_cls=dict(
            type='LDClsLoss',
            student='student.cls',
            teacher='teacher.cls',
            loss_weight=2.0,
        ),
    ),
)
