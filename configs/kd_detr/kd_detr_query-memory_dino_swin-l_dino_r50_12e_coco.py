# KD-DETR on the queries, and PKD on the encoders' memory.
_base_ = './kd_detr_query_dino_swin-l_dino_r50_12e_coco.py'

model = dict(
    recorders=dict(
        student=dict(memory='encoder', maps='neck'),
        teacher=dict(memory='encoder', maps='neck'),
    ),
    connectors=dict(
        mine=dict(type='TokenConnector', input='student.memory', like='student.maps'),
        # Skip the teacher's first level (stride 4): the student has no such level.
        theirs=dict(
            type='TokenConnector',
            input='teacher.memory',
            like='teacher.maps',
            levels=[1, 2, 3, 4],
        ),
    ),
    losses=dict(
        loss_pkd=dict(
            type='PKDLoss', student='mine', teacher='theirs', loss_weight=10.0
        )
    ),
)
