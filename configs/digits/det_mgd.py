# The same student, distilled with MGD on the neck.
_base_ = 'det_distilled.py'

model = dict(
    connectors=dict(
        generated=dict(
            type='MGDConnector',
            input='aligned',
            channels=64,
            num_levels=4,
            mask_ratio=0.65,
        )
    ),
    losses=dict(
        _delete_=True,
        loss_mgd=dict(
            type='MGDLoss', student='generated', teacher='teacher.fpn', loss_weight=4e-6
        ),
    ),
)
