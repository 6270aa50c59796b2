# CWD on P3 to P7.
_base_ = 'mmdet::reppoints/reppoints-moment_r50_fpn-gn_head-gn_2x_coco.py'

model = dict(
    _delete_=True,
    type='kdtoolbox.Distiller',
    student=_base_.model,
    teacher=dict(
        config='mmdet::reppoints/reppoints-moment_x101-dconv-c3-c5_fpn-gn_head-gn_2x_coco.py',
        checkpoint='https://download.openmmlab.com/mmdetection/v2.0/reppoints/reppoints_moment_x101_fpn_dconv_c3-c5_gn-neck%2Bhead_2x_coco/reppoints_moment_x101_fpn_dconv_c3-c5_gn-neck%2Bhead_2x_coco_20200329-f87da1ea.pth',
    ),
    recorders=dict(student=dict(fpn='neck'), teacher=dict(fpn='neck')),
    losses=dict(
        loss_cwd=dict(
            type='CWDLoss',
            student='student.fpn',
            teacher='teacher.fpn',
            loss_weight=10.0,
        )
    ),
)
