# PKD on P3 to P6, as the authors do; P7 is not distilled.
_base_ = 'mmdet::retinanet/retinanet_r50_fpn_2x_coco.py'

model = dict(
    _delete_=True,
    type='kdtoolbox.Distiller',
    student=_base_.model,
    teacher=dict(
        config='mmdet::retinanet/retinanet_x101-64x4d_fpn_1x_coco.py',
        checkpoint='https://download.openmmlab.com/mmdetection/v2.0/retinanet/retinanet_x101_64x4d_fpn_1x_coco/retinanet_x101_64x4d_fpn_1x_coco_20200130-366f5af1.pth',
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
