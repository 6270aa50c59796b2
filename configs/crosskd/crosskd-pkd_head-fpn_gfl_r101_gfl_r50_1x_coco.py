# CrossKD on the head and PKD on P3 to P6, with the authors' weight.
_base_ = 'crosskd_head_gfl_r101_gfl_r50_1x_coco.py'

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
            loss_weight=6.0,
        )
    ),
)
