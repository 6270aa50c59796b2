# PKD on P2 to P5; P6 is a pooled P5 and would count P5 twice.
_base_ = 'mmdet::faster_rcnn/faster-rcnn_r50_fpn_2x_coco.py'

model = dict(
    _delete_=True,
    type='kdtoolbox.Distiller',
    student=_base_.model,
    teacher=dict(
        config='mmdet::faster_rcnn/faster-rcnn_r101_fpn_2x_coco.py',
        checkpoint='https://download.openmmlab.com/mmdetection/v2.0/faster_rcnn/faster_rcnn_r101_fpn_2x_coco/faster_rcnn_r101_fpn_2x_coco_bbox_mAP-0.398_20200504_210455-1d2dac9c.pth',
    ),
    recorders=dict(
        student=dict(fpn='neck.fpn_convs.*'), teacher=dict(fpn='neck.fpn_convs.*')
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
