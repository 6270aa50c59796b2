# MGD on P3 to P7, before the neck's last norm.
_base_ = 'mmdet::reppoints/reppoints-moment_r50_fpn-gn_head-gn_2x_coco.py'
model = dict(
    _delete_=True,
    type='kdtoolbox.Distiller',
    student=_base_.model,
    teacher=dict(
        config='mmdet::reppoints/reppoints-moment_x101-dconv-c3-c5_fpn-gn_head-gn_2x_coco.py',
        checkpoint='https://download.openmmlab.com/mmdetection/v2.0/reppoints/reppoints_moment_x101_fpn_dconv_c3-c5_gn-neck%2Bhead_2x_coco/reppoints_moment_x101_fpn_dconv_c3-c5_gn-neck%2Bhead_2x_coco_20200329-f87da1ea.pth',
    ),
    init_student=True,
    recorders=dict(
        student=dict(fpn='neck.fpn_convs.*.conv'),
        teacher=dict(fpn='neck.fpn_convs.*.conv'),
    ),
    connectors=dict(
        generated=dict(
            type='MGDConnector',
            input='student.fpn',
            channels=256,
            num_levels=5,
            mask_ratio=0.65,
        )
    ),
    losses=dict(
        loss_mgd=dict(type='MGDLoss', student='generated', teacher='teacher.fpn')
    ),
)
optim_wrapper = dict(clip_grad=dict(max_norm=35, norm_type=2))
