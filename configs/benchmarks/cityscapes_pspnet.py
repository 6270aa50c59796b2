# Segmentation on Cityscapes: PSPNet R18 learns from R101, in 80,000 iterations.
student = 'mmseg::pspnet/pspnet_r18-d8_4xb2-80k_cityscapes-512x1024.py'
# Its weights are those that mmsegmentation publishes.
teacher = dict(config='mmseg::pspnet/pspnet_r101-d8_4xb2-80k_cityscapes-512x1024.py')
metric = 'mIoU'
data = 'cityscapes'
size = [512, 1024]
gpus = 4
seeds = [0, 1, 2]
rows = dict(
    student=dict(),
    cwd=dict(method='cwd', at='decode_head.conv_seg'),
    kd=dict(method='kd'),
    skd=dict(method='skd'),
    ifvd=dict(method='ifvd'),
    cirkd=dict(method='cirkd'),
    dsd=dict(method='dsd'),
    dist=dict(method='dist'),
    bpkd=dict(method='bpkd'),
    attnfd=dict(method='attnfd'),
    lskd=dict(method='lskd'),
    dkd=dict(method='dkd'),
    at=dict(method='at'),
)
# The same numbers as in the metafiles. BPKD's baseline is that of its own repository.
published = dict(
    cwd=dict(
        student=74.87, distilled=75.54, source='reported by mmrazor, arXiv 2011.13256'
    ),
    bpkd=dict(
        student=74.23,
        distilled=77.57,
        source='reported by AkideLiu/BPKD, arXiv 2306.08075',
    ),
)
