# The small detector, trained alone from the backbone and neck of the stage before.
_base_ = '../digits/det_student.py'

pretrained = dict(
    type='Pretrained',
    checkpoint='work_dirs/digits_det_backbone/student_iter_400.pth',
)
model = dict(
    backbone=dict(init_cfg=dict(**pretrained, prefix='backbone.')),
    neck=dict(init_cfg=dict(**pretrained, prefix='neck.')),
)
