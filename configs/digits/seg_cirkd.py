# The same student, distilled with CIRKD before the classifier instead of CWD.
_base_ = 'seg_distilled.py'

features = dict(student='student.features', teacher='teacher.features')
# No module returns the sum of the levels, so record the input of the dropout.
places = dict(features=dict(source='decode_head.dropout', what='input'))
model = dict(
    recorders=dict(student=places, teacher=places),
    losses=dict(
        _delete_=True,
        loss_kd=dict(
            type='KDLoss',
            student='student.logits',
            teacher='teacher.logits',
            loss_weight=0.04,
        ),
        loss_mini_batch=dict(
            type='CIRKDMiniBatchLoss', pool_size=4, loss_weight=0.04, **features
        ),
        loss_memory=dict(
            type='CIRKDMemoryLoss',
            num_classes=11,
            student_channels=32,
            teacher_channels=64,
            pixel_slots=2000,
            region_slots=200,
            pixel_keys=1024,
            region_keys=256,
            max_anchors=1024,
            loss_weight=0.004,
            **features,
        ),
    ),
)
