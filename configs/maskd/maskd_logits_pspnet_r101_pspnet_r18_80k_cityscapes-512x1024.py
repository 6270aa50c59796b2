# Stage 2: MasKD on the logits, with the tokens of stage 1.
_base_ = 'mmseg::pspnet/pspnet_r18-d8_4xb2-80k_cityscapes-512x1024.py'

places = dict(logits='decode_head.conv_seg')
model = dict(
    _delete_=True,
    type='kdtoolbox.Distiller',
    student=_base_.model,
    teacher=dict(
        config='mmseg::pspnet/pspnet_r101-d8_4xb2-80k_cityscapes-512x1024.py',
        checkpoint='https://mmassets.onedl.ai/mmsegmentation/v0.5/pspnet/pspnet_r101-d8_512x1024_80k_cityscapes/pspnet_r101-d8_512x1024_80k_cityscapes_20200606_112211-e1e1100f.pth',
    ),
    recorders=dict(student=places, teacher=places),
    losses=dict(
        loss_maskd=dict(
            type='MasKDLoss',
            student='student.logits',
            teacher='teacher.logits',
            channels=19,
            num_levels=1,
            num_tokens=8,
            weighted=False,
            tokens='work_dirs/maskd_tokens_pspnet_r101_cityscapes-512x1024/iter_10000.pth',
            legacy_squared_mask=True,
            loss_weight=0.5,
        )
    ),
)
