# CrossKD on the head and PKD on P3 to P6, with the authors' weight.
_base_ = 'crosskd_head_fcos_r101_fcos_r50_ms-2x_coco.py'

model = dict(
    recorders=dict(
        student=dict(fpn='neck.fpn_convs.[0-3]'),
        teacher=dict(fpn='neck.fpn_convs.[0-3]'),
    ),
    losses=dict(
        loss_pkd=dict(
            type='PKDLoss',
            student='student.fpn',
            teacher='teacher.fpn',
            loss_weight=2.0,
        )
    ),
)
