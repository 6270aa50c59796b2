# The same student, distilled with LD in the head and CWD between both necks.
_base_ = 'det_ld.py'

model = dict(
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
