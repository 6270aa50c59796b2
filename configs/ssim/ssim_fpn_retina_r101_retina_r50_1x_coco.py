# SSIM on P3 to P7; the loss weight and the feature scale are unverified.
_base_ = 'mmdet::retinanet/retinanet_r50_fpn_1x_coco.py'

model = dict(
    _delete_=True,
    type='kdtoolbox.Distiller',
    student=_base_.model,
    teacher=dict(
        config='mmdet::retinanet/retinanet_r101_fpn_2x_coco.py',
        checkpoint='https://download.openmmlab.com/mmdetection/v2.0/retinanet/retinanet_r101_fpn_2x_coco/retinanet_r101_fpn_2x_coco_20200131-5560aee8.pth',
    ),
    recorders=dict(student=dict(fpn='neck'), teacher=dict(fpn='neck')),
    losses=dict(
        loss_ssim=dict(
            type='SSIMLoss',
            student='student.fpn',
            teacher='teacher.fpn',
            loss_weight=2.0,
        )
    ),
)
