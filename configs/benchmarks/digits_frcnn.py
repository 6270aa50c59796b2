# Methods that need RoIs, on DigitScenes: a small Faster R-CNN learns from one that is
# twice as wide. Its teacher has no cache, since it looks at the student's proposals.
student = '../digits/frcnn_student.py'
teacher = dict(
    config='../digits/frcnn_teacher.py',
    checkpoint='../digits/frcnn_teacher.safetensors',
)
metric = 'coco/bbox_mAP'
scale = 100
data = 'digits_det'
size = [128, 128]
seeds = [0, 1, 2]
rows = dict(
    student=dict(),
    response=dict(method='response'),
    dkd=dict(method='dkd'),
)
