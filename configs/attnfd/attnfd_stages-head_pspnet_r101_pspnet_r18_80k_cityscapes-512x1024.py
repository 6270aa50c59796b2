# AttnFD on the four stages of the backbone and on the last feature of the head.
_base_ = 'mmseg::pspnet/pspnet_r18-d8_4xb2-80k_cityscapes-512x1024.py'

stages = dict(in_channels=[64, 128, 256, 512], out_channels=[256, 512, 1024, 2048])
loss = dict(type='AttnFDLoss', legacy_batch_norm=True)
head = dict(in_channels=[128], out_channels=[512])
model = dict(
    _delete_=True,
    type='kdtoolbox.Distiller',
    student=_base_.model,
    teacher=dict(
        config='mmseg::pspnet/pspnet_r101-d8_4xb2-80k_cityscapes-512x1024.py',
        checkpoint='https://mmassets.onedl.ai/mmsegmentation/v0.5/pspnet/pspnet_r101-d8_512x1024_80k_cityscapes/pspnet_r101-d8_512x1024_80k_cityscapes_20200606_112211-e1e1100f.pth',
    ),
    recorders=dict(
        student=dict(stages='backbone', head='decode_head.bottleneck'),
        teacher=dict(stages='backbone', head='decode_head.bottleneck'),
    ),
    connectors=dict(
        s_stages=dict(type='CBAMConnector', input='student.stages', **stages),
        s_head=dict(type='CBAMConnector', input='student.head', **head),
        t_stages=dict(type='FixedCBAMConnector', input='teacher.stages'),
        t_head=dict(type='FixedCBAMConnector', input='teacher.head'),
    ),
    losses=dict(
        loss_stages=dict(**loss, student='s_stages', teacher='t_stages'),
        loss_head=dict(**loss, student='s_head', teacher='t_head'),
    ),
)
