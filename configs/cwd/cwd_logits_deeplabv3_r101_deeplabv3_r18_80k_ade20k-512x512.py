# CWD on the logits, with the temperature and weight of the paper.
_base_ = '../students/deeplabv3_r18-d8_80k_ade20k-512x512.py'

model = dict(
    _delete_=True,
    type='kdtoolbox.Distiller',
    student=_base_.model,
    teacher=dict(
        config='mmseg::deeplabv3/deeplabv3_r101-d8_4xb4-80k_ade20k-512x512.py',
        checkpoint='https://mmassets.onedl.ai/mmsegmentation/v0.5/deeplabv3/deeplabv3_r101-d8_512x512_80k_ade20k/deeplabv3_r101-d8_512x512_80k_ade20k_20200615_021256-d89c7fa4.pth',
    ),
    recorders=dict(
        student=dict(logits='decode_head.conv_seg'),
        teacher=dict(logits='decode_head.conv_seg'),
    ),
    losses=dict(
        loss_cwd=dict(
            type='CWDLoss',
            student='student.logits',
            teacher='teacher.logits',
            tau=4.0,
            loss_weight=3.0,
        )
    ),
)
