# LD with its three terms: main region, valuable region and classes.
_base_ = '../students/gfl_r18_fpn_1x_coco.py'

records = dict(cls='bbox_head.gfl_cls', reg='bbox_head.scales.*')
model = dict(
    _delete_=True,
    type='kdtoolbox.Distiller',
    student=_base_.model,
    teacher=dict(
        config='mmdet::gfl/gfl_r101_fpn_ms-2x_coco.py',
        checkpoint='https://download.openmmlab.com/mmdetection/v2.0/gfl/gfl_r101_fpn_mstrain_2x_coco/gfl_r101_fpn_mstrain_2x_coco_20200629_200126-dd12f847.pth',
    ),
    recorders=dict(student=records, teacher=records),
    losses=dict(
        loss_ld=dict(
            type='LDLoss',
            student='student.reg',
            teacher='teacher.reg',
            student_cls='student.cls',
        ),
        loss_ld_cls=dict(
            type='LDClsLoss', student='student.cls', teacher='teacher.cls'
        ),
    ),
)
