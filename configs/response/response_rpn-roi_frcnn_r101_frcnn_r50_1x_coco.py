# Distil classes and deltas of the student's RoIs, and the objectness of all anchors.
_base_ = 'mmdet::faster_rcnn/faster-rcnn_r50_fpn_1x_coco.py'

cls = dict(student='student.roi_cls', teacher='teacher.roi_cls')
reg = dict(student='student.roi_reg', teacher='teacher.roi_reg', labels='roi.labels')
rpn = dict(student='student.rpn_cls', teacher='teacher.rpn_cls')
model = dict(
    _delete_=True,
    type='kdtoolbox.Distiller',
    student=_base_.model,
    teacher=dict(
        config='mmdet::faster_rcnn/faster-rcnn_r101_fpn_2x_coco.py',
        checkpoint='https://download.openmmlab.com/mmdetection/v2.0/faster_rcnn/faster_rcnn_r101_fpn_2x_coco/faster_rcnn_r101_fpn_2x_coco_bbox_mAP-0.398_20200504_210455-1d2dac9c.pth',
    ),
    sources=[dict(type='RoIResponses')],
    recorders=dict(
        student=dict(rpn_cls='rpn_head.rpn_cls'),
        teacher=dict(rpn_cls='rpn_head.rpn_cls'),
    ),
    losses=dict(
        loss_roi_kd=dict(**cls, type='KDLoss', tau=1.0, loss_weight=1.0),
        loss_roi_reg=dict(**reg, type='RoIRegressionLoss', loss_weight=1.0),
        loss_rpn_kd=dict(**rpn, type='ObjectnessLoss', loss_weight=0.5),
    ),
)
