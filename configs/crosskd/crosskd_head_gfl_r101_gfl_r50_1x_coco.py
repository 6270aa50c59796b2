# CrossKD after the third convolution of GFL's towers: classes and distributions.
_base_ = 'mmdet::gfl/gfl_r50_fpn_1x_coco.py'

boxes = dict(student='cross.reg', teacher='teacher.reg', teacher_cls='teacher.cls')
model = dict(
    _delete_=True,
    type='kdtoolbox.Distiller',
    student=_base_.model,
    teacher=dict(
        config='mmdet::gfl/gfl_r101_fpn_ms-2x_coco.py',
        checkpoint='https://download.openmmlab.com/mmdetection/v2.0/gfl/gfl_r101_fpn_mstrain_2x_coco/gfl_r101_fpn_mstrain_2x_coco_20200629_200126-dd12f847.pth',
    ),
    sources=[dict(type='CrossHead')],
    losses=dict(
        loss_cross_cls=dict(
            type='CrossKDClsLoss', student='cross.cls', teacher='teacher.cls'
        ),
        loss_cross_reg=dict(**boxes, type='CrossKDDistributionLoss', loss_weight=4.0),
    ),
)
