# MiT-B0 on the tokens of DINOv2-S, on a folder of images without labels.
_base_ = 'mmseg::segformer/segformer_mit-b0_8xb2-160k_ade20k-512x512.py'

dino = dict(type='FoundationTeacher', model='transformers::facebook/dinov2-small')
project = dict(type='ConvConnector', in_channels=256, out_channels=384)
resize = dict(type='ResizeConnector', input='teacher.maps', like='c5')
stage = dict(type='LevelsConnector', input='student.stages', levels=[3])
model = dict(
    _delete_=True,
    type='kdtoolbox.Pretrainer',
    student=_base_.model,
    parts=('backbone',),
    # One token of 14 pixels for each cell of stride 32.
    teacher=dict(**dino, pretrained=True, view=dict(scale=14 / 32)),
    recorders=dict(student=dict(stages='backbone'), teacher=dict(maps='maps')),
    connectors=dict(c5=stage, aligned=dict(**project, input='c5'), tokens=resize),
    losses=dict(
        loss_radio=dict(type='CosineSmoothL1Loss', student='aligned', teacher='tokens'),
        loss_patch=dict(type='PatchRelationLoss', student='aligned', teacher='tokens'),
    ),
)
resized = dict(type='Resize', scale=(448, 448), keep_ratio=False)
pipeline = [dict(type='LoadImageFromFile'), resized, dict(type='PackSegInputs')]
images = dict(type='kdtoolbox.ImageFolder', data_root='data/images/', pipeline=pipeline)
data = dict(dataset=dict(_delete_=True, **images))
train_dataloader = dict(batch_size=32, **data)
val_dataloader = val_cfg = val_evaluator = None
test_dataloader = test_cfg = test_evaluator = None
