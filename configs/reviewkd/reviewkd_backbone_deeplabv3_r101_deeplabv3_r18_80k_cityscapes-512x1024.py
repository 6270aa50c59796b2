# ReviewKD on the four stages of the backbone.
_base_ = 'mmseg::deeplabv3/deeplabv3_r18-d8_4xb2-80k_cityscapes-512x1024.py'

model = dict(
    _delete_=True,
    type='kdtoolbox.Distiller',
    student=_base_.model,
    teacher=dict(
        config='mmseg::deeplabv3/deeplabv3_r101-d8_4xb2-80k_cityscapes-512x1024.py',
        checkpoint='https://mmassets.onedl.ai/mmsegmentation/v0.5/deeplabv3/deeplabv3_r101-d8_512x1024_80k_cityscapes/deeplabv3_r101-d8_512x1024_80k_cityscapes_20200606_113503-9e428899.pth',
    ),
    recorders=dict(student=dict(stages='backbone'), teacher=dict(stages='backbone')),
    connectors=dict(
        reviewed=dict(
            type='ABFConnector',
            input='student.stages',
            in_channels=[64, 128, 256, 512],
            out_channels=[256, 512, 1024, 2048],
            mid_channels=256,
        )
    ),
    losses=dict(
        loss_reviewkd=dict(type='HCLLoss', student='reviewed', teacher='teacher.stages')
    ),
)
