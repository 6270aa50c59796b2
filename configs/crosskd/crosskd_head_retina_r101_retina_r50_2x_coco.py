# CrossKD after the third convolution of RetinaNet's towers: classes and boxes.
_base_ = 'mmdet::retinanet/retinanet_r50_fpn_2x_coco.py'

boxes = dict(student='cross.reg', teacher='teacher.reg', teacher_cls='teacher.cls')
model = dict(
    _delete_=True,
    type='kdtoolbox.Distiller',
    student=_base_.model,
    teacher=dict(
        config='mmdet::retinanet/retinanet_r101_fpn_2x_coco.py',
        checkpoint='https://download.openmmlab.com/mmdetection/v2.0/retinanet/retinanet_r101_fpn_2x_coco/retinanet_r101_fpn_2x_coco_20200131-5560aee8.pth',
    ),
    sources=[dict(type='CrossHead')],
    losses=dict(
        loss_cross_cls=dict(
            type='CrossKDClsLoss', student='cross.cls', teacher='teacher.cls'
        ),
        loss_cross_reg=dict(**boxes, type='CrossKDBoxLoss', mode='giou'),
    ),
)
