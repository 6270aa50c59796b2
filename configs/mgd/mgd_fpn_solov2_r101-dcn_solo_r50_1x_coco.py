# MGD on P2 to P5, before SOLO's head resizes them.
_base_ = 'mmdet::solo/solo_r50_fpn_1x_coco.py'

model = dict(
    _delete_=True,
    type='kdtoolbox.Distiller',
    student=_base_.model,
    teacher=dict(
        config='mmdet::solov2/solov2_r101-dcn_fpn_ms-3x_coco.py',
        checkpoint='https://download.openmmlab.com/mmdetection/v2.0/solov2/solov2_r101_dcn_fpn_3x_coco/solov2_r101_dcn_fpn_3x_coco_20220513_214734-16c966cb.pth',
    ),
    recorders=dict(
        student=dict(fpn='neck.fpn_convs.*'), teacher=dict(fpn='neck.fpn_convs.*')
    ),
    connectors=dict(
        generated=dict(
            type='MGDConnector',
            input='student.fpn',
            channels=256,
            num_levels=4,
            mask_ratio=0.65,
        )
    ),
    losses=dict(
        loss_mgd=dict(type='MGDLoss', student='generated', teacher='teacher.fpn')
    ),
)
optim_wrapper = dict(clip_grad=dict(max_norm=35, norm_type=2))
