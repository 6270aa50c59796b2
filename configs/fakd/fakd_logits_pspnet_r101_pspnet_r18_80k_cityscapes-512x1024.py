# FAKD on the logits: KD with augmented features. Unverified.
_base_ = 'mmseg::pspnet/pspnet_r18-d8_4xb2-80k_cityscapes-512x1024.py'

wires = dict(
    student='student.logits',
    teacher='teacher.logits',
    features='student.features',
    classifier='student.classifier',
)
sizes = dict(num_classes=19, student_channels=128, ramp_iterations=80000)
model = dict(
    _delete_=True,
    type='kdtoolbox.Distiller',
    student=_base_.model,
    teacher=dict(
        config='mmseg::pspnet/pspnet_r101-d8_4xb2-80k_cityscapes-512x1024.py',
        checkpoint='https://mmassets.onedl.ai/mmsegmentation/v0.5/pspnet/pspnet_r101-d8_512x1024_80k_cityscapes/pspnet_r101-d8_512x1024_80k_cityscapes_20200606_112211-e1e1100f.pth',
    ),
    sources=[dict(type='ClassifierWeights')],
    recorders=dict(
        student=dict(
            logits='decode_head.conv_seg',
            features=dict(source='decode_head.conv_seg', what='input'),
        ),
        teacher=dict(logits='decode_head.conv_seg'),
    ),
    losses=dict(loss_fakd=dict(type='FAKDLoss', **wires, **sizes)),
)
