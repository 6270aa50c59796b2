# CWD on the classification logits of P3 to P7, all computed by one module.
_base_ = 'mmdet::gfl/gfl_r50_fpn_1x_coco.py'

model = dict(
    _delete_=True,
    type='kdtoolbox.Distiller',
    student=_base_.model,
    teacher=dict(
        config='mmdet::gfl/gfl_r101_fpn_ms-2x_coco.py',
        checkpoint='https://download.openmmlab.com/mmdetection/v2.0/gfl/gfl_r101_fpn_mstrain_2x_coco/gfl_r101_fpn_mstrain_2x_coco_20200629_200126-dd12f847.pth',
    ),
    recorders=dict(
        student=dict(logits='bbox_head.gfl_cls'),
        teacher=dict(logits='bbox_head.gfl_cls'),
    ),
    losses=dict(
        loss_cwd=dict(
            type='CWDLoss',
            student='student.logits',
            teacher='teacher.logits',
            loss_weight=10.0,
        )
    ),
)
