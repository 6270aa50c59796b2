# FGD before the neck's last norm, with the factor 1.6 for detectors without anchors.
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
    losses=dict(
        loss_fgd=dict(
            type='FGDLoss',
            student='student.fpn',
            teacher='teacher.fpn',
            channels=256,
            num_levels=5,
            loss_weight=1.6,
        )
    ),
)
optim_wrapper = dict(clip_grad=dict(max_norm=35, norm_type=2))
