# MGD on P2 to P5, the levels that box head and mask head share.
_base_ = 'mmdet::mask_rcnn/mask-rcnn_r50_fpn_2x_coco.py'
model = dict(
    _delete_=True,
    type='kdtoolbox.Distiller',
    student=_base_.model,
    teacher=dict(
        config='mmdet::dcn/cascade-mask-rcnn_x101-32x4d-dconv-c3-c5_fpn_1x_coco.py',
        checkpoint='https://download.openmmlab.com/mmdetection/v2.0/dcn/cascade_mask_rcnn_x101_32x4d_fpn_dconv_c3-c5_1x_coco/cascade_mask_rcnn_x101_32x4d_fpn_dconv_c3-c5_1x_coco-e75f90c8.pth',
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
            mask_ratio=0.45,
        )
    ),
    losses=dict(
        loss_mgd=dict(
            type='MGDLoss', student='generated', teacher='teacher.fpn', loss_weight=5e-7
        )
    ),
)
optim_wrapper = dict(clip_grad=dict(max_norm=35, norm_type=2))
