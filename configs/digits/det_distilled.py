# The same student, schedule and data order, with CWD between both necks. The weights of
# these recipes are those that configs/benchmarks/digits_det.py has found.
_base_ = 'det_student.py'

model = dict(
    _delete_=True,
    type='kdtoolbox.Distiller',
    student=_base_.model,
    teacher=dict(
        config='det_teacher.py',
        checkpoint='det_teacher.safetensors',
    ),
    recorders=dict(student=dict(fpn='neck'), teacher=dict(fpn='neck')),
    connectors=dict(
        aligned=dict(
            type='ConvConnector', input='student.fpn', in_channels=32, out_channels=64
        )
    ),
    losses=dict(
        loss_cwd=dict(
            type='CWDLoss', student='aligned', teacher='teacher.fpn', loss_weight=0.4
        )
    ),
)
