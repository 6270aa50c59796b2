# Mask2Former R18 without distillation; mmsegmentation has none smaller than an R50.
_base_ = 'mmseg::mask2former/mask2former_r50_8xb2-90k_cityscapes-512x1024.py'

model = dict(
    backbone=dict(
        depth=18,
        init_cfg=dict(type='Pretrained', checkpoint='torchvision://resnet18'),
    ),
    decode_head=dict(in_channels=[64, 128, 256, 512]),
)
