# KD-DETR on the teacher's queries; the teacher refines its boxes in each layer.
_base_ = 'mmdet::deformable_detr/deformable-detr_r50_16xb2-50e_coco.py'

model = dict(
    _delete_=True,
    type='kdtoolbox.Distiller',
    student=_base_.model,
    teacher=dict(
        config='mmdet::deformable_detr/deformable-detr-refine_r50_16xb2-50e_coco.py',
        checkpoint='https://download.openmmlab.com/mmdetection/v3.0/deformable_detr/deformable-detr-refine_r50_16xb2-50e_coco/deformable-detr-refine_r50_16xb2-50e_coco_20221022_225303-844e0f93.pth',
    ),
    sources=[dict(type='ObjectQueries')],
    losses=dict(
        loss_query_cls=dict(
            type='QueryClassLoss',
            student='student.query_cls',
            teacher='teacher.query_cls',
            loss_weight=2.0,
        ),
        loss_query_box=dict(
            type='QueryBoxLoss',
            student='student.query_box',
            teacher='teacher.query_box',
            teacher_cls='teacher.query_cls',
        ),
    ),
)
