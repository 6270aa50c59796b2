# PKD on P3 to P6; both necks end in a norm, and the maps are recorded after it.
_base_ = 'mmdet::reppoints/reppoints-moment_r50_fpn-gn_head-gn_2x_coco.py'

model = dict(
    _delete_=True,
    type='kdtoolbox.Distiller',
    student=_base_.model,
    teacher=dict(
        config='mmdet::reppoints/reppoints-moment_x101-dconv-c3-c5_fpn-gn_head-gn_2x_coco.py',
        checkpoint='https://download.openmmlab.com/mmdetection/v2.0/reppoints/reppoints_moment_x101_fpn_dconv_c3-c5_gn-neck%2Bhead_2x_coco/reppoints_moment_x101_fpn_dconv_c3-c5_gn-neck%2Bhead_2x_coco_20200329-f87da1ea.pth',
    ),
    recorders=dict(
        student=dict(fpn='neck.fpn_convs.[0-3]'),
        teacher=dict(fpn='neck.fpn_convs.[0-3]'),
    ),
    losses=dict(
        loss_pkd=dict(
            type='PKDLoss',
            student='student.fpn',
            teacher='teacher.fpn',
            loss_weight=10.0,
        )
    ),
)
