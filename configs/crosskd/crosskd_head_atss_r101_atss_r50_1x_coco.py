# CrossKD after the third convolution of ATSS's towers: classes, boxes, centerness.
_base_ = 'mmdet::atss/atss_r50_fpn_1x_coco.py'

boxes = dict(student='cross.reg', teacher='teacher.reg', teacher_cls='teacher.cls')
model = dict(
    _delete_=True,
    type='kdtoolbox.Distiller',
    student=_base_.model,
    teacher=dict(
        config='mmdet::atss/atss_r101_fpn_1x_coco.py',
        checkpoint='https://download.openmmlab.com/mmdetection/v2.0/atss/atss_r101_fpn_1x_coco/atss_r101_fpn_1x_20200825-dfcadd6f.pth',
    ),
    sources=[dict(type='CrossHead')],
    losses=dict(
        loss_cross_cls=dict(
            type='CrossKDClsLoss', student='cross.cls', teacher='teacher.cls'
        ),
        loss_cross_reg=dict(**boxes, type='CrossKDBoxLoss', mode='giou'),
        loss_cross_centerness=dict(
            type='CrossKDCenternessLoss',
            student='cross.centerness',
            teacher='teacher.centerness',
        ),
    ),
)
