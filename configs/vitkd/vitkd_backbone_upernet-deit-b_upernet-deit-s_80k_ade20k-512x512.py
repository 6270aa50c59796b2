# ViTKD between DeiTs of 12 blocks, with the authors' weights for classification.
_base_ = 'mmseg::vit/vit_deit-s16_upernet_8xb2-80k_ade20k-512x512.py'
blocks = dict(low='backbone.layers.[0-1]', top='backbone.layers.11')
grid = dict(type='TokenConnector', skip=1)
conv = dict(type='ConvConnector', out_channels=768)

model = dict(
    _delete_=True,
    type='kdtoolbox.Distiller',
    student=_base_.model,
    teacher=dict(
        config='mmseg::vit/vit_deit-b16_upernet_8xb2-80k_ade20k-512x512.py',
        checkpoint='https://mmassets.onedl.ai/mmsegmentation/v0.5/vit/upernet_deit-b16_512x512_80k_ade20k/upernet_deit-b16_512x512_80k_ade20k_20210624_130529-1e090789.pth',
    ),
    recorders=dict(student=blocks, teacher=blocks),
    connectors=dict(
        s_low=dict(grid, input='student.low'),
        s_top=dict(grid, input='student.top'),
        t_low=dict(grid, input='teacher.low'),
        t_top=dict(grid, input='teacher.top'),
        low=dict(conv, input='s_low', in_channels=[384] * 2),
        top=dict(conv, input='s_top', in_channels=384),
    ),
    losses=dict(
        loss_low=dict(type='MGDLoss', student='low', teacher='t_low', loss_weight=3e-5),
        loss_top=dict(type='ViTKDLoss', student='top', teacher='t_top', channels=768),
    ),
)
