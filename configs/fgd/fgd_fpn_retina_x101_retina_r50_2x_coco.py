# FGD on P3 to P7; the student starts with the teacher's neck and head.
_base_ = 'mmdet::retinanet/retinanet_r50_fpn_2x_coco.py'

model = dict(
    _delete_=True,
    type='kdtoolbox.Distiller',
    student=_base_.model,
    teacher=dict(
        config='mmdet::retinanet/retinanet_x101-64x4d_fpn_1x_coco.py',
        checkpoint='https://download.openmmlab.com/mmdetection/v2.0/retinanet/retinanet_x101_64x4d_fpn_1x_coco/retinanet_x101_64x4d_fpn_1x_coco_20200130-366f5af1.pth',
    ),
    init_student=True,
    recorders=dict(student=dict(fpn='neck'), teacher=dict(fpn='neck')),
    losses=dict(
        loss_fgd=dict(
            type='FGDLoss',
            student='student.fpn',
            teacher='teacher.fpn',
            channels=256,
            num_levels=5,
        )
    ),
)
optim_wrapper = dict(clip_grad=dict(max_norm=35, norm_type=2))
