# PKD from another family: P3 to P6 learn from the teacher's P2 to P5 (twice the size).
_base_ = 'mmdet::retinanet/retinanet_r50_fpn_2x_coco.py'

model = dict(
    _delete_=True,
    type='kdtoolbox.Distiller',
    student=_base_.model,
    teacher=dict(
        config='mmdet::swin/mask-rcnn_swin-s-p4-w7_fpn_amp-ms-crop-3x_coco.py',
        checkpoint='https://download.openmmlab.com/mmdetection/v2.0/swin/mask_rcnn_swin-s-p4-w7_fpn_fp16_ms-crop-3x_coco/mask_rcnn_swin-s-p4-w7_fpn_fp16_ms-crop-3x_coco_20210903_104808-b92c91f1.pth',
    ),
    recorders=dict(
        student=dict(fpn='neck.fpn_convs.[0-3]'),
        teacher=dict(fpn='neck.fpn_convs.[0-3]'),
    ),
    connectors=dict(
        resized=dict(type='ResizeConnector', input='student.fpn', like='teacher.fpn')
    ),
    losses=dict(
        loss_pkd=dict(
            type='PKDLoss',
            student='resized',
            teacher='teacher.fpn',
            loss_weight=6.0,
        )
    ),
)
