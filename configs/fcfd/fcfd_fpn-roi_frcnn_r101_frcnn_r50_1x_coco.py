# FCFD on P2 to P5 and the box heads; no box head reads P6.
_base_ = 'mmdet::faster_rcnn/faster-rcnn_r50_fpn_1x_coco.py'

bridge = dict(in_channels=[256] * 4, out_channels=256, kernel_size=3)
bridge |= dict(type='ConvConnector', norm_cfg=dict(type='BN'))
bridged = dict(type='BridgedRoIs', bridges=dict(cross=bridge, back=bridge))
cls = dict(type='KDLoss', teacher='teacher.roi_cls')
reg = dict(type='FCFDRegressionLoss', teacher='teacher.roi_reg')
model = dict(
    _delete_=True,
    type='kdtoolbox.Distiller',
    student=_base_.model,
    teacher=dict(
        config='mmdet::faster_rcnn/faster-rcnn_r101_fpn_2x_coco.py',
        checkpoint='https://download.openmmlab.com/mmdetection/v2.0/faster_rcnn/faster_rcnn_r101_fpn_2x_coco/faster_rcnn_r101_fpn_2x_coco_bbox_mAP-0.398_20200504_210455-1d2dac9c.pth',
    ),
    sources=[dict(type='RoIResponses'), bridged],
    losses=dict(
        loss_levels=dict(
            type='FitNetLoss', student='cross.roi_levels', teacher='teacher.roi_levels'
        ),
        loss_cls_kd=dict(**cls, student='student.roi_cls'),
        loss_reg_kd=dict(**reg, student='student.roi_reg'),
        loss_cross_cls=dict(**cls, student='cross.roi_cls'),
        loss_cross_reg=dict(**reg, student='cross.roi_reg'),
        loss_back_cls=dict(**cls, student='back.roi_cls'),
        loss_back_reg=dict(**reg, student='back.roi_reg'),
    ),
)
