# MGD on the last stage of the backbone, and CWD on the logits.
_base_ = 'mmseg::pspnet/pspnet_r18-d8_4xb2-80k_cityscapes-512x1024.py'

places = dict(c5='backbone.layer4', logits='decode_head.conv_seg')
logits = dict(student='student.logits', teacher='teacher.logits')
generator = dict(type='MGDConnector', channels=2048, num_levels=1, mask_ratio=0.75)
model = dict(
    _delete_=True,
    type='kdtoolbox.Distiller',
    student=_base_.model,
    teacher=dict(
        config='mmseg::pspnet/pspnet_r101-d8_4xb2-80k_cityscapes-512x1024.py',
        checkpoint='https://mmassets.onedl.ai/mmsegmentation/v0.5/pspnet/pspnet_r101-d8_512x1024_80k_cityscapes/pspnet_r101-d8_512x1024_80k_cityscapes_20200606_112211-e1e1100f.pth',
    ),
    recorders=dict(student=places, teacher=places),
    connectors=dict(
        aligned=dict(
            type='ConvConnector', input='student.c5', in_channels=512, out_channels=2048
        ),
        generated=dict(input='aligned', **generator),
    ),
    losses=dict(
        loss_mgd=dict(type='MGDLoss', student='generated', teacher='teacher.c5'),
        loss_cwd=dict(type='CWDLoss', tau=4.0, loss_weight=3.0, **logits),
    ),
)
