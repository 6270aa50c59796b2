# The same student under CIRKD before the classifier, in the place of CWD.
_base_ = 'seg_distilled.py'

features = dict(student='student.features', teacher='teacher.features')
# The sum of the levels belongs to no module but to the dropout that reads it.
places = dict(features=dict(source='decode_head.dropout', what='input'))
model = dict(
    recorders=dict(student=places, teacher=places),
    losses=dict(
        _delete_=True,
        loss_kd=dict(type='KDLoss', student='student.logits', teacher='teacher.logits'),
        loss_mini_batch=dict(type='CIRKDMiniBatchLoss', pool_size=4, **features),
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
            **features,
        ),
    ),
)
