# MGD on P3 to P7; neck and head start from the teacher's weights.
_base_ = 'mmdet::fcos/fcos_r50-caffe_fpn_gn-head_ms-640-800-2x_coco.py'

model = dict(
    _delete_=True,
    type='kdtoolbox.Distiller',
    student=_base_.model,
    teacher=dict(
        config='mmdet::fcos/fcos_r101-caffe_fpn_gn-head_ms-640-800-2x_coco.py',
        checkpoint='https://download.openmmlab.com/mmdetection/v2.0/fcos/fcos_r101_caffe_fpn_gn-head_mstrain_640-800_2x_coco/fcos_r101_caffe_fpn_gn-head_mstrain_640-800_2x_coco-511424d6.pth',
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
