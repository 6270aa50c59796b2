# The same student, distilled with FGD on the neck.
_base_ = 'det_distilled.py'

model = dict(
    losses=dict(
        _delete_=True,
        loss_fgd=dict(
            type='FGDLoss',
            student='aligned',
            teacher='teacher.fpn',
            channels=64,
            num_levels=4,
            loss_weight=0.0016,
        ),
    )
)
