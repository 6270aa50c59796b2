# Stage 2: MasKD on P3 to P7, with the tokens of maskd_tokens_retina_r101_coco.py.
_base_ = 'mmdet::retinanet/retinanet_r50_fpn_2x_coco.py'

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
        loss_maskd=dict(
            type='MasKDLoss',
            student='student.fpn',
            teacher='teacher.fpn',
            channels=256,
            num_levels=5,
            num_tokens=6,
            tokens='work_dirs/maskd_tokens_retina_r101_coco/iter_2000.pth',
            legacy_squared_mask=True,
            loss_weight=7.0,
        )
    ),
)
