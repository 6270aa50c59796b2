# PKD from an anchor-free teacher; the pyramids have the same strides.
_base_ = 'mmdet::retinanet/retinanet_r50_fpn_1x_coco.py'

model = dict(
    _delete_=True,
    type='kdtoolbox.Distiller',
    student=_base_.model,
    teacher=dict(
        config='mmdet::fcos/fcos_x101-64x4d_fpn_gn-head_ms-640-800-2x_coco.py',
        checkpoint='https://download.openmmlab.com/mmdetection/v2.0/fcos/fcos_x101_64x4d_fpn_gn-head_mstrain_640-800_2x_coco/fcos_x101_64x4d_fpn_gn-head_mstrain_640-800_2x_coco-ede514a8.pth',
    ),
    recorders=dict(
        student=dict(fpn='neck.fpn_convs.[0-3]'),
        teacher=dict(fpn='neck.fpn_convs.[0-3]'),
    ),
    losses=dict(
        loss_pkd=dict(
            type='PKDLoss',
            student='student.fpn',
            teacher='teacher.fpn',
            loss_weight=10.0,
        )
    ),
)
