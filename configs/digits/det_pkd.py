# The same student, schedule and data order, with PKD instead of CWD.
_base_ = 'det_distilled.py'

model = dict(
    losses=dict(
        _delete_=True,
        loss_pkd=dict(
            type='PKDLoss', student='aligned', teacher='teacher.fpn', loss_weight=0.4
        ),
    )
)
