# PKD on P3 to P6; the teacher was trained longer and at several scales.
_base_ = 'mmdet::gfl/gfl_r50_fpn_1x_coco.py'

model = dict(
    _delete_=True,
    type='kdtoolbox.Distiller',
    student=_base_.model,
    teacher=dict(
        config='mmdet::gfl/gfl_r101_fpn_ms-2x_coco.py',
        checkpoint='https://download.openmmlab.com/mmdetection/v2.0/gfl/gfl_r101_fpn_mstrain_2x_coco/gfl_r101_fpn_mstrain_2x_coco_20200629_200126-dd12f847.pth',
    ),
    recorders=dict(
        student=dict(fpn='neck.fpn_convs.[0-3]'),
        teacher=dict(fpn='neck.fpn_convs.[0-3]'),
    ),
    losses=dict(
        loss_pkd=dict(
            type='PKDLoss',
            student='student.fpn',
            teacher='teacher.fpn',
            loss_weight=10.0,
        )
    ),
)
