# The same student, distilled with DIST on the logits.
_base_ = 'seg_distilled.py'

model = dict(
    losses=dict(
        _delete_=True,
        loss_dist=dict(
            type='DISTLoss',
            student='student.logits',
            teacher='teacher.logits',
            loss_weight=5.0,
        ),
    )
)
