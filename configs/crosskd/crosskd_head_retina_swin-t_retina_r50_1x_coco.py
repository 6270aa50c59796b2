# CrossKD from a Swin-T teacher without published weights: train the teacher first.
_base_ = 'mmdet::retinanet/retinanet_r50_fpn_1x_coco.py'

boxes = dict(student='cross.reg', teacher='teacher.reg', teacher_cls='teacher.cls')
model = dict(
    _delete_=True,
    type='kdtoolbox.Distiller',
    student=_base_.model,
    teacher=dict(
        config='mmdet::swin/retinanet_swin-t-p4-w7_fpn_1x_coco.py',
        checkpoint='work_dirs/retinanet_swin-t-p4-w7_fpn_1x_coco/epoch_12.pth',
    ),
    sources=[dict(type='CrossHead')],
    losses=dict(
        loss_cross_cls=dict(
            type='CrossKDClsLoss', student='cross.cls', teacher='teacher.cls'
        ),
        loss_cross_reg=dict(**boxes, type='CrossKDBoxLoss', mode='giou'),
    ),
)
