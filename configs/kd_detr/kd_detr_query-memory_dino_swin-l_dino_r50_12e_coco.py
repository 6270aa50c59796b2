# PKD on the memory of the encoders beside KD-DETR on the queries.
_base_ = './kd_detr_query_dino_swin-l_dino_r50_12e_coco.py'

model = dict(
    recorders=dict(
        student=dict(memory='encoder', maps='neck'),
        teacher=dict(memory='encoder', maps='neck'),
    ),
    connectors=dict(
        mine=dict(type='TokenConnector', input='student.memory', like='student.maps'),
        # The first of the teacher's five levels, of stride 4, has no counterpart.
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
