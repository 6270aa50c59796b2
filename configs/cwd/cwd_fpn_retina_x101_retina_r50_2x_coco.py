# CWD on P3 to P6, without P7.
_base_ = 'mmdet::retinanet/retinanet_r50_fpn_2x_coco.py'

model = dict(
    _delete_=True,
    type='kdtoolbox.Distiller',
    student=_base_.model,
    teacher=dict(
        config='mmdet::retinanet/retinanet_x101-64x4d_fpn_2x_coco.py',
        checkpoint='https://download.openmmlab.com/mmdetection/v2.0/retinanet/retinanet_x101_64x4d_fpn_2x_coco/retinanet_x101_64x4d_fpn_2x_coco_20200131-bca068ab.pth',
    ),
    recorders=dict(
        student=dict(fpn='neck.fpn_convs.[0-3]'),
        teacher=dict(fpn='neck.fpn_convs.[0-3]'),
    ),
    losses=dict(
        loss_cwd=dict(
            type='CWDLoss',
            student='student.fpn',
            teacher='teacher.fpn',
            loss_weight=5.0,
        )
    ),
)
