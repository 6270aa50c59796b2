# PGD on both towers of ATSS; the authors' teacher was trained longer.
_base_ = 'mmdet::atss/atss_r50_fpn_1x_coco.py'

towers = dict(cls_tower='bbox_head.cls_convs[-1]', reg_tower='bbox_head.reg_convs[-1]')
guides = dict(teacher_cls='teacher.cls', teacher_reg='teacher.reg')
cls_ends = dict(student='student.cls_tower', teacher='teacher.cls_tower')
reg_ends = dict(student='student.reg_tower', teacher='teacher.reg_tower')
model = dict(
    _delete_=True,
    type='kdtoolbox.Distiller',
    student=_base_.model,
    teacher=dict(
        config='mmdet::atss/atss_r101_fpn_1x_coco.py',
        checkpoint='https://download.openmmlab.com/mmdetection/v2.0/atss/atss_r101_fpn_1x_coco/atss_r101_fpn_1x_20200825-dfcadd6f.pth',
    ),
    init_student=True,
    recorders=dict(
        student=towers,
        # Each level scales its raw boxes before the head decodes them.
        teacher=dict(**towers, cls='bbox_head.atss_cls', reg='bbox_head.scales.*'),
    ),
    losses=dict(
        loss_pgd_cls=dict(type='PGDClsLoss', **cls_ends, **guides),
        loss_pgd_reg=dict(type='PGDRegLoss', **reg_ends, **guides),
    ),
)
