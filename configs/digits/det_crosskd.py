# The same student, distilled with CrossKD through the teacher's head.
_base_ = 'det_distilled.py'

ends = dict(student='cross.reg', teacher='teacher.reg', teacher_cls='teacher.cls')
# The towers are half as wide as the teacher's; in the paper they are equal.
projection = dict(type='ConvConnector', in_channels=32, out_channels=64)
model = dict(
    _delete_=True,
    type='kdtoolbox.Distiller',
    student=_base_.model.student,
    teacher=_base_.model.teacher,
    sources=[dict(type='CrossHead', stage=1, projection=projection)],
    losses=dict(
        loss_cross_cls=dict(
            type='CrossKDClsLoss',
            student='cross.cls',
            teacher='teacher.cls',
            loss_weight=0.2,
        ),
        loss_cross_reg=dict(**ends, type='CrossKDDistributionLoss', loss_weight=0.8),
    ),
)
