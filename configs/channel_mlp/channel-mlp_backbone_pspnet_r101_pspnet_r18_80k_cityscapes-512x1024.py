# Channel-wise transformation of the last stage, with MGD's weight.
_base_ = 'mmseg::pspnet/pspnet_r18-d8_4xb2-80k_cityscapes-512x1024.py'
stage = dict(c5='backbone.layer4')

model = dict(
    _delete_=True,
    type='kdtoolbox.Distiller',
    student=_base_.model,
    teacher=dict(
        config='mmseg::pspnet/pspnet_r101-d8_4xb2-80k_cityscapes-512x1024.py',
        checkpoint='https://mmassets.onedl.ai/mmsegmentation/v0.5/pspnet/pspnet_r101-d8_512x1024_80k_cityscapes/pspnet_r101-d8_512x1024_80k_cityscapes_20200606_112211-e1e1100f.pth',
    ),
    recorders=dict(student=stage, teacher=stage),
    connectors=dict(
        mlp=dict(
            type='ChannelMLPConnector',
            input='student.c5',
            in_channels=512,
            out_channels=2048,
        )
    ),
    losses=dict(
        loss_channel_mlp=dict(
            type='MGDLoss', student='mlp', teacher='teacher.c5', loss_weight=2e-5
        )
    ),
)
