# MGD on P3 to P7; neck and head start from the teacher's weights.
_base_ = 'mmdet::retinanet/retinanet_r50_fpn_2x_coco.py'

model = dict(
    _delete_=True,
    type='kdtoolbox.Distiller',
    student=_base_.model,
    teacher=dict(
        config='mmdet::retinanet/retinanet_x101-64x4d_fpn_1x_coco.py',
        checkpoint='https://download.openmmlab.com/mmdetection/v2.0/retinanet/retinanet_x101_64x4d_fpn_1x_coco/retinanet_x101_64x4d_fpn_1x_coco_20200130-366f5af1.pth',
    ),
    init_student=True,
    recorders=dict(student=dict(fpn='neck'), teacher=dict(fpn='neck')),
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
