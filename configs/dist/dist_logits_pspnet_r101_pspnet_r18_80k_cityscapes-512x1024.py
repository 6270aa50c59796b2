# DIST on the logits of both heads, with the authors' weights.
_base_ = 'mmseg::pspnet/pspnet_r18-d8_4xb2-80k_cityscapes-512x1024.py'

logits = dict(main='decode_head.conv_seg', auxiliary='auxiliary_head.conv_seg')
main = dict(student='student.main', teacher='teacher.main')
auxiliary = dict(student='student.auxiliary', teacher='teacher.auxiliary')
model = dict(
    _delete_=True,
    type='kdtoolbox.Distiller',
    student=_base_.model,
    teacher=dict(
        config='mmseg::pspnet/pspnet_r101-d8_4xb2-80k_cityscapes-512x1024.py',
        checkpoint='https://mmassets.onedl.ai/mmsegmentation/v0.5/pspnet/pspnet_r101-d8_512x1024_80k_cityscapes/pspnet_r101-d8_512x1024_80k_cityscapes_20200606_112211-e1e1100f.pth',
    ),
    recorders=dict(student=logits, teacher=logits),
    losses=dict(
        loss_dist=dict(**main, type='DISTLoss', loss_weight=1.0),
        loss_dist_aux=dict(**auxiliary, type='DISTLoss', loss_weight=0.4),
    ),
)
