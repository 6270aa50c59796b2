# ResNet-50 on the tokens of DINOv2-S, on a folder of images without labels.
_base_ = 'mmdet::gfl/gfl_r50_fpn_1x_coco.py'

dino = dict(type='FoundationTeacher', model='transformers::facebook/dinov2-small')
project = dict(type='ConvConnector', in_channels=2048, out_channels=384)
resize = dict(type='ResizeConnector', input='teacher.maps', like='student.c5')
model = dict(
    _delete_=True,
    type='kdtoolbox.Pretrainer',
    student=_base_.model,
    parts=('backbone',),
    # One token of 14 pixels for each cell of stride 32.
    teacher=dict(**dino, pretrained=True, view=dict(scale=14 / 32)),
    recorders=dict(student=dict(c5='backbone.layer4'), teacher=dict(maps='maps')),
    connectors=dict(aligned=dict(**project, input='student.c5'), tokens=resize),
    losses=dict(
        loss_radio=dict(type='CosineSmoothL1Loss', student='aligned', teacher='tokens'),
        loss_patch=dict(type='PatchRelationLoss', student='aligned', teacher='tokens'),
    ),
)
resized = dict(type='Resize', scale=(448, 448), keep_ratio=False)
pipeline = [dict(type='LoadImageFromFile'), resized, dict(type='PackDetInputs')]
images = dict(type='kdtoolbox.ImageFolder', data_root='data/images/', pipeline=pipeline)
data = dict(batch_sampler=None, dataset=dict(_delete_=True, **images))
train_dataloader = dict(batch_size=32, **data)
val_dataloader = val_cfg = val_evaluator = None
test_dataloader = test_cfg = test_evaluator = None
