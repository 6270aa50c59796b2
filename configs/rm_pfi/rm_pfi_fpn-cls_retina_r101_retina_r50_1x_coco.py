# RM on the ranking of each object's anchors; PFI weights features by prediction gaps.
_base_ = 'mmdet::retinanet/retinanet_r50_fpn_1x_coco.py'

sources = dict(fpn='neck', cls='bbox_head.retina_cls')
model = dict(
    _delete_=True,
    type='kdtoolbox.Distiller',
    student=_base_.model,
    teacher=dict(
        config='mmdet::retinanet/retinanet_r101_fpn_2x_coco.py',
        checkpoint='https://download.openmmlab.com/mmdetection/v2.0/retinanet/retinanet_r101_fpn_2x_coco/retinanet_r101_fpn_2x_coco_20200131-5560aee8.pth',
    ),
    recorders=dict(student=sources, teacher=sources),
    losses=dict(
        loss_rm=dict(type='RMLoss', student='student.cls', teacher='teacher.cls'),
        loss_pfi=dict(
            type='PFILoss',
            student='student.fpn',
            teacher='teacher.fpn',
            student_cls='student.cls',
            teacher_cls='teacher.cls',
        ),
    ),
)
