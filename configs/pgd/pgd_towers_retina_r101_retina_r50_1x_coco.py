# PGD on both towers of RetinaNet; the best of nine anchors gives a cell's quality.
_base_ = 'mmdet::retinanet/retinanet_r50_fpn_1x_coco.py'

towers = dict(cls_tower='bbox_head.cls_convs[-1]', reg_tower='bbox_head.reg_convs[-1]')
guides = dict(teacher_cls='teacher.cls', teacher_reg='teacher.reg')
cls_ends = dict(student='student.cls_tower', teacher='teacher.cls_tower')
reg_ends = dict(student='student.reg_tower', teacher='teacher.reg_tower')
model = dict(
    _delete_=True,
    type='kdtoolbox.Distiller',
    student=_base_.model,
    teacher=dict(
        config='mmdet::retinanet/retinanet_r101_fpn_2x_coco.py',
        checkpoint='https://download.openmmlab.com/mmdetection/v2.0/retinanet/retinanet_r101_fpn_2x_coco/retinanet_r101_fpn_2x_coco_20200131-5560aee8.pth',
    ),
    init_student=True,
    recorders=dict(
        student=towers,
        teacher=dict(**towers, cls='bbox_head.retina_cls', reg='bbox_head.retina_reg'),
    ),
    losses=dict(
        loss_pgd_cls=dict(type='PGDClsLoss', **cls_ends, **guides),
        loss_pgd_reg=dict(type='PGDRegLoss', **reg_ends, **guides),
    ),
)
