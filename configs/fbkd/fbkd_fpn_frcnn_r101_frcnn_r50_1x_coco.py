# FBKD on P2 to P5, without P6, which is a pooled P5.
_base_ = 'mmdet::faster_rcnn/faster-rcnn_r50_fpn_1x_coco.py'

model = dict(
    _delete_=True,
    type='kdtoolbox.Distiller',
    student=_base_.model,
    teacher=dict(
        config='mmdet::faster_rcnn/faster-rcnn_r101_fpn_1x_coco.py',
        checkpoint='https://download.openmmlab.com/mmdetection/v2.0/faster_rcnn/faster_rcnn_r101_fpn_1x_coco/faster_rcnn_r101_fpn_1x_coco_20200130-f513f705.pth',
    ),
    recorders=dict(
        student=dict(fpn='neck.fpn_convs.*'), teacher=dict(fpn='neck.fpn_convs.*')
    ),
    losses=dict(
        loss_fbkd=dict(
            type='FBKDLoss',
            student='student.fpn',
            teacher='teacher.fpn',
            channels=256,
            num_levels=4,
        )
    ),
)
