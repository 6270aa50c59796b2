# Backbone and neck of the small detector on the teacher's neck, without labels.
_base_ = '../digits/det_student.py'

aligned = dict(
    type='ConvConnector', input='student.fpn', in_channels=32, out_channels=64
)
radio = dict(type='CosineSmoothL1Loss', student='aligned', teacher='teacher.fpn')
model = dict(
    _delete_=True,
    type='kdtoolbox.Pretrainer',
    student=_base_.model,
    teacher=dict(
        config='../digits/det_teacher.py',
        checkpoint='../digits/det_teacher.safetensors',
    ),
    recorders=dict(student=dict(fpn='neck'), teacher=dict(fpn='neck')),
    connectors=dict(aligned=aligned),
    losses=dict(loss_radio=radio),
)
images = dict(
    type='kdtoolbox.ImageFolder',
    data_root='data/digits_det/train2017/',
    pipeline=[dict(type='LoadImageFromFile'), dict(type='PackDetInputs')],
)
train_dataloader = dict(dataset=dict(_delete_=True, **images))
val_dataloader = val_cfg = val_evaluator = None
test_dataloader = test_cfg = test_evaluator = None
