# DKD on the class logits of the student's RoIs, with the authors' values for detection.
_base_ = '../students/faster-rcnn_r18_fpn_1x_coco.py'

model = dict(
    _delete_=True,
    type='kdtoolbox.Distiller',
    student=_base_.model,
    teacher=dict(
        config='mmdet::faster_rcnn/faster-rcnn_r101_fpn_2x_coco.py',
        checkpoint='https://download.openmmlab.com/mmdetection/v2.0/faster_rcnn/faster_rcnn_r101_fpn_2x_coco/faster_rcnn_r101_fpn_2x_coco_bbox_mAP-0.398_20200504_210455-1d2dac9c.pth',
    ),
    sources=[dict(type='RoIResponses')],
    losses=dict(
        loss_dkd=dict(
            type='DKDLoss',
            student='student.roi_cls',
            teacher='teacher.roi_cls',
            labels='roi.labels',
            target_weight=1.0,
            non_target_weight=0.25,
            tau=1.0,
        )
    ),
)
