# GID on P3 to P7 and both head outputs, with the authors' values for RetinaNet.
_base_ = 'mmdet::retinanet/retinanet_r50_fpn_1x_coco.py'

recorder = dict(fpn='neck', cls='bbox_head.retina_cls', reg='bbox_head.retina_reg')
align = dict(type='ConvConnector', input='student.fpn', kernel_size=3)
model = dict(
    _delete_=True,
    type='kdtoolbox.Distiller',
    student=_base_.model,
    teacher=dict(
        config='mmdet::retinanet/retinanet_r101_fpn_2x_coco.py',
        checkpoint='https://download.openmmlab.com/mmdetection/v2.0/retinanet/retinanet_r101_fpn_2x_coco/retinanet_r101_fpn_2x_coco_20200131-5560aee8.pth',
    ),
    recorders=dict(student=recorder, teacher=recorder),
    connectors=dict(aligned=dict(**align, in_channels=[256] * 5, out_channels=256)),
    losses=dict(
        loss_gid=dict(
            type='GIDLoss',
            **dict(student='aligned', teacher='teacher.fpn'),
            **dict(student_cls='student.cls', teacher_cls='teacher.cls'),
            **dict(student_reg='student.reg', teacher_reg='teacher.reg'),
        )
    ),
)
