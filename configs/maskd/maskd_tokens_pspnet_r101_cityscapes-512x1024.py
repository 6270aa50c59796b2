# Stage 1: train the tokens of the logits on the frozen teacher, without a student.
_base_ = 'mmseg::pspnet/pspnet_r101-d8_4xb2-80k_cityscapes-512x1024.py'

model = dict(
    _delete_=True,
    type='kdtoolbox.TokenTrainer',
    teacher=dict(
        config='mmseg::pspnet/pspnet_r101-d8_4xb2-80k_cityscapes-512x1024.py',
        checkpoint='https://mmassets.onedl.ai/mmsegmentation/v0.5/pspnet/pspnet_r101-d8_512x1024_80k_cityscapes/pspnet_r101-d8_512x1024_80k_cityscapes_20200606_112211-e1e1100f.pth',
    ),
    channels=19,
    num_levels=1,
    num_tokens=8,
    weighted=False,
    source='decode_head.conv_seg',
)
train_cfg = dict(max_iters=10000)
optim_wrapper = dict(optimizer=dict(lr=0.1, weight_decay=1e-3))
param_scheduler = [dict(type='CosineAnnealingLR', T_max=10000, by_epoch=False)]
default_hooks = dict(checkpoint=dict(interval=10000))
# No validation: the teacher's score does not change.
val_dataloader = None
val_cfg = None
val_evaluator = None
