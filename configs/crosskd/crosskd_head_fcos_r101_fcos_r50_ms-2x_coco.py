# CrossKD after the second convolution of FCOS's towers: classes and boxes.
_base_ = 'mmdet::fcos/fcos_r50-caffe_fpn_gn-head_ms-640-800-2x_coco.py'

boxes = dict(student='cross.reg', teacher='teacher.reg', teacher_cls='teacher.cls')
model = dict(
    _delete_=True,
    type='kdtoolbox.Distiller',
    student=_base_.model,
    teacher=dict(
        config='mmdet::fcos/fcos_r101-caffe_fpn_gn-head_ms-640-800-2x_coco.py',
        checkpoint='https://download.openmmlab.com/mmdetection/v2.0/fcos/fcos_r101_caffe_fpn_gn-head_mstrain_640-800_2x_coco/fcos_r101_caffe_fpn_gn-head_mstrain_640-800_2x_coco-511424d6.pth',
    ),
    sources=[dict(type='CrossHead', stage=2)],
    losses=dict(
        loss_cross_cls=dict(
            type='CrossKDClsLoss',
            student='cross.cls',
            teacher='teacher.cls',
            loss_weight=0.4,
        ),
        loss_cross_reg=dict(
            **boxes, type='CrossKDBoxLoss', mode='iou', loss_weight=0.75
        ),
    ),
)
