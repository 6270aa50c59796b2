# The same student, distilled with CrossKD and with LD. CrossKD's wires have the
# predictions of the teacher.
_base_ = 'det_crosskd.py'

layers = dict(cls='bbox_head.gfl_cls', reg='bbox_head.scales.*')
model = dict(
    recorders=dict(student=layers, teacher=dict()),
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
