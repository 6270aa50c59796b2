# FGD on all three levels, with YOLOX's own EMA, mode switch and random resize.
_base_ = 'mmdet::yolox/yolox_m_8xb8-300e_coco.py'

aligned = dict(
    type='ConvConnector', input='student.fpn', in_channels=[192] * 3, out_channels=256
)
model = dict(
    _delete_=True,
    type='kdtoolbox.Distiller',
    student=_base_.model,
    teacher=dict(
        config='mmdet::yolox/yolox_l_8xb8-300e_coco.py',
        checkpoint='https://download.openmmlab.com/mmdetection/v2.0/yolox/yolox_l_8x8_300e_coco/yolox_l_8x8_300e_coco_20211126_140236-d3bd2b23.pth',
    ),
    recorders=dict(student=dict(fpn='neck'), teacher=dict(fpn='neck')),
    connectors=dict(aligned=aligned),
    losses=dict(
        loss_fgd=dict(
            type='FGDLoss',
            student='aligned',
            teacher='teacher.fpn',
            channels=256,
            num_levels=3,
            loss_weight=1.6,
        )
    ),
)
