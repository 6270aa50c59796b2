# DeFeat on P2 to P6 and on the class logits of the student's RoIs.
_base_ = 'mmdet::faster_rcnn/faster-rcnn_r50_fpn_1x_coco.py'

roi = dict(student='student.roi_cls', teacher='teacher.roi_cls', labels='roi.labels')
model = dict(
    _delete_=True,
    type='kdtoolbox.Distiller',
    student=_base_.model,
    teacher=dict(
        config='mmdet::faster_rcnn/faster-rcnn_r101_fpn_2x_coco.py',
        checkpoint='https://download.openmmlab.com/mmdetection/v2.0/faster_rcnn/faster_rcnn_r101_fpn_2x_coco/faster_rcnn_r101_fpn_2x_coco_bbox_mAP-0.398_20200504_210455-1d2dac9c.pth',
    ),
    sources=[dict(type='RoIResponses')],
    recorders=dict(student=dict(fpn='neck'), teacher=dict(fpn='neck')),
    connectors=dict(
        aligned=dict(
            type='ConvConnector',
            input='student.fpn',
            in_channels=[256] * 5,
            out_channels=256,
            kernel_size=3,
        )
    ),
    losses=dict(
        loss_defeat=dict(type='DeFeatLoss', student='aligned', teacher='teacher.fpn'),
        loss_defeat_roi=dict(type='DeFeatRoILoss', **roi),
    ),
)
