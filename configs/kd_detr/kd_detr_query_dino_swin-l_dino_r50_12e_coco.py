# KD-DETR on the teacher's queries: five-scale Swin-L to four-scale ResNet-50.
_base_ = 'mmdet::dino/dino-4scale_r50_8xb2-12e_coco.py'

model = dict(
    _delete_=True,
    type='kdtoolbox.Distiller',
    student=_base_.model,
    teacher=dict(
        config='mmdet::dino/dino-5scale_swin-l_8xb2-12e_coco.py',
        checkpoint='https://download.openmmlab.com/mmdetection/v3.0/dino/dino-5scale_swin-l_8xb2-12e_coco/dino-5scale_swin-l_8xb2-12e_coco_20230228_072924-a654145f.pth',
    ),
    sources=[dict(type='ObjectQueries')],
    losses=dict(
        loss_query_cls=dict(
            type='QueryClassLoss',
            student='student.query_cls',
            teacher='teacher.query_cls',
            loss_weight=1.0,
        ),
        loss_query_box=dict(
            type='QueryBoxLoss',
            student='student.query_box',
            teacher='teacher.query_box',
            teacher_cls='teacher.query_cls',
        ),
    ),
)
