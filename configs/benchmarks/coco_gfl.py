# Detection on COCO: GFL R50 learns from GFL R101, in mmdetection's 12 epochs.
student = 'mmdet::gfl/gfl_r50_fpn_1x_coco.py'
# Its weights are those that mmdetection publishes.
teacher = dict(config='mmdet::gfl/gfl_r101_fpn_ms-2x_coco.py')
metric = 'coco/bbox_mAP'
scale = 100
data = 'coco'
size = [800, 1344]
# train2017 without the images that mmdetection leaves out.
images = 117266
gpus = 8
seeds = [0]
rows = dict(
    student=dict(),
    cwd=dict(method='cwd', at='neck'),
    cwd_cls=dict(config='../cwd/cwd_cls_head_gfl_r101_gfl_r50_1x_coco.py'),
    fgd=dict(method='fgd'),
    pkd=dict(method='pkd'),
    crosskd=dict(method='crosskd'),
    crosskd_pkd=dict(
        config='../crosskd/crosskd-pkd_head-fpn_gfl_r101_gfl_r50_1x_coco.py'
    ),
    mgd=dict(method='mgd'),
    ld=dict(method='ld'),
    fgfi=dict(method='fgfi'),
    defeat=dict(method='defeat'),
    frs=dict(method='frs'),
    gid=dict(method='gid'),
    pgd=dict(method='pgd'),
    fitnet=dict(method='fitnet'),
    at=dict(method='at'),
    reviewkd=dict(method='reviewkd'),
)
# The same numbers as in the metafiles. LD's baseline is that of its own repository.
published = dict(
    cwd_cls=dict(
        student=40.2, distilled=41.9, source='reported by mmrazor, arXiv 2011.13256'
    ),
    # With the neck and the heads of the teacher at the start, unlike here.
    fgd=dict(
        student=40.2, distilled=43.5, source='reported by yzd-v/FGD, arXiv 2111.11837'
    ),
    crosskd=dict(
        student=40.2,
        distilled=43.7,
        source='reported by jbwang1997/CrossKD, arXiv 2306.11369',
    ),
    crosskd_pkd=dict(
        student=40.2,
        distilled=43.9,
        source='reported by jbwang1997/CrossKD, arXiv 2306.11369',
    ),
    ld=dict(student=40.1, distilled=42.1, source='paper, arXiv 2102.12252'),
)
