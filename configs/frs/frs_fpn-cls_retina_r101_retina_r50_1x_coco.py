# FRS on the pyramid and the classification; both warm up, as in the authors' code.
_base_ = 'mmdet::retinanet/retinanet_r50_fpn_1x_coco.py'

conv = dict(in_channels=[256] * 5, out_channels=256, kernel_size=3)
feature = dict(student='aligned', teacher='teacher.fpn', teacher_cls='teacher.cls')
logit = dict(student='student.cls', teacher='teacher.cls')
sources = dict(fpn='neck', cls='bbox_head.retina_cls')
model = dict(
    _delete_=True,
    type='kdtoolbox.Distiller',
    student=_base_.model,
    teacher=dict(
        config='mmdet::retinanet/retinanet_r101_fpn_2x_coco.py',
        checkpoint='https://download.openmmlab.com/mmdetection/v2.0/retinanet/retinanet_r101_fpn_2x_coco/retinanet_r101_fpn_2x_coco_20200131-5560aee8.pth',
    ),
    recorders=dict(student=sources, teacher=sources),
    connectors=dict(aligned=dict(type='ConvConnector', input='student.fpn', **conv)),
    losses=dict(
        loss_frs=dict(type='FRSFeatureLoss', **feature, loss_weight=0.005),
        loss_frs_cls=dict(type='FRSLogitLoss', **logit, loss_weight=0.02),
    ),
)
custom_hooks = [
    dict(type='kdtoolbox.LossWeightHook', loss='loss_frs', warmup=500),
    dict(type='kdtoolbox.LossWeightHook', loss='loss_frs_cls', warmup=500),
]
