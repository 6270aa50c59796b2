# Stage 1: train the tokens of P3 to P7 on the frozen teacher, without a student.
_base_ = 'mmdet::retinanet/retinanet_r101_fpn_2x_coco.py'

model = dict(
    _delete_=True,
    type='kdtoolbox.TokenTrainer',
    teacher=dict(
        config='mmdet::retinanet/retinanet_r101_fpn_2x_coco.py',
        checkpoint='https://download.openmmlab.com/mmdetection/v2.0/retinanet/retinanet_r101_fpn_2x_coco/retinanet_r101_fpn_2x_coco_20200131-5560aee8.pth',
    ),
    channels=256,
    num_levels=5,
    num_tokens=6,
)
train_cfg = dict(_delete_=True, type='IterBasedTrainLoop', max_iters=2000)
optim_wrapper = dict(optimizer=dict(lr=0.1))
param_scheduler = [dict(type='CosineAnnealingLR', T_max=2000, by_epoch=False)]
default_hooks = dict(checkpoint=dict(by_epoch=False, interval=2000))
log_processor = dict(by_epoch=False)
# No validation: the teacher's score does not change.
val_dataloader = None
val_cfg = None
val_evaluator = None
