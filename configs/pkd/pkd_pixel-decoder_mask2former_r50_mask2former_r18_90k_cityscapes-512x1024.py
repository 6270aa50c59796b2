# PKD on the pixel decoder's outputs: the mask features and three levels.
_base_ = '../students/mask2former_r18_8xb2-90k_cityscapes-512x1024.py'

model = dict(
    _delete_=True,
    type='kdtoolbox.Distiller',
    student=_base_.model,
    teacher=dict(
        config='mmseg::mask2former/mask2former_r50_8xb2-90k_cityscapes-512x1024.py',
        checkpoint='https://mmassets.onedl.ai/mmsegmentation/v0.5/mask2former/mask2former_r50_8xb2-90k_cityscapes-512x1024/mask2former_r50_8xb2-90k_cityscapes-512x1024_20221202_140802-ffd9d750.pth',
    ),
    recorders=dict(
        student=dict(maps='decode_head.pixel_decoder'),
        teacher=dict(maps='decode_head.pixel_decoder'),
    ),
    losses=dict(
        loss_pkd=dict(
            type='PKDLoss',
            student='student.maps',
            teacher='teacher.maps',
            loss_weight=10.0,
        )
    ),
)
