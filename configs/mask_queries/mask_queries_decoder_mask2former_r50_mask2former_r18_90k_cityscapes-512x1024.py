# Match Mask2Former's queries in each layer; compare their classes and masks.
_base_ = '../students/mask2former_r18_8xb2-90k_cityscapes-512x1024.py'

queries = dict(
    cls='decode_head.cls_embed',
    embed='decode_head.mask_embed',
    maps='decode_head.pixel_decoder.mask_feature',
)
masks = dict(type='QueryMaskConnector', pool_size=2)
logits = dict(student_cls='student.cls', teacher_cls='teacher.cls')
model = dict(
    _delete_=True,
    type='kdtoolbox.Distiller',
    student=_base_.model,
    teacher=dict(
        config='mmseg::mask2former/mask2former_r50_8xb2-90k_cityscapes-512x1024.py',
        checkpoint='https://mmassets.onedl.ai/mmsegmentation/v0.5/mask2former/mask2former_r50_8xb2-90k_cityscapes-512x1024/mask2former_r50_8xb2-90k_cityscapes-512x1024_20221202_140802-ffd9d750.pth',
    ),
    recorders=dict(student=queries, teacher=queries),
    connectors=dict(
        mine=dict(**masks, input='student.embed', features='student.maps'),
        theirs=dict(**masks, input='teacher.embed', features='teacher.maps'),
    ),
    losses=dict(
        loss_queries=dict(
            type='MaskQueryLoss', **logits, student='mine', teacher='theirs'
        )
    ),
)
