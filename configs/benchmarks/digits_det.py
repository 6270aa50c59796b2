# Detection on DigitScenes: a small GFL learns from one that is twice as wide.
student = '../digits/det_student.py'
teacher = dict(
    config='../digits/det_teacher.py',
    checkpoint='../digits/det_teacher.safetensors',
    # No augmentation: each scene has one view, and a cache changes the rounding alone.
    cache=dict(path='work_dirs/caches/digits_det', views=1, dtype='float32'),
)
metric = 'coco/bbox_mAP'
scale = 100
data = 'digits_det'
size = [128, 128]
seeds = [0, 1, 2]
# The weights in `options` are those of the method's recipe times a factor that `--tune`
# has found. docs/benchmark.md explains the notes.
rows = dict(
    student=dict(seeds=[0, 1, 2, 3, 4]),
    cwd=dict(
        method='cwd',
        options={'model.losses.loss_cwd.loss_weight': 0.4},
        note='classification loss 0.267 at the end, alone 0.276',
    ),
    fgd=dict(
        method='fgd',
        options={'model.losses.loss_fgd.loss_weight': 0.0016},
        note='classification loss 0.282 at the end, alone 0.276',
    ),
    pkd=dict(
        method='pkd',
        options={'model.losses.loss_pkd.loss_weight': 0.4},
        note='classification loss 0.274 at the end, alone 0.276',
    ),
    crosskd=dict(
        method='crosskd',
        options={
            'model.losses.loss_cross_cls.loss_weight': 0.2,
            'model.losses.loss_cross_reg.loss_weight': 0.8,
        },
        seeds=[0, 1, 2, 3, 4],
    ),
    mgd=dict(
        method='mgd',
        options={'model.losses.loss_mgd.loss_weight': 4e-06},
        note='classification loss 0.267 at the end, alone 0.276',
    ),
    ld=dict(
        method='ld',
        options={
            'model.losses.loss_ld.loss_weight': 0.2,
            'model.losses.loss_ld_cls.loss_weight': 2.0,
        },
        seeds=[0, 1, 2, 3, 4],
    ),
    fgfi=dict(
        method='fgfi',
        options={'model.losses.loss_fgfi.loss_weight': 0.002},
    ),
    defeat=dict(
        method='defeat',
        options={'model.losses.loss_defeat.loss_weight': 0.0016},
        note='classification loss 0.264 at the end, alone 0.276',
    ),
    frs=dict(
        method='frs',
        options={
            'model.losses.loss_frs.loss_weight': 0.0002,
            'model.losses.loss_frs_cls.loss_weight': 0.0008,
        },
        note='classification loss 0.268 at the end, alone 0.276',
    ),
    gid=dict(
        method='gid',
        options={'model.losses.loss_gid.loss_weight': 0.008},
        note='classification loss 0.285 at the end, alone 0.276',
    ),
    pgd=dict(
        method='pgd',
        options={
            'model.losses.loss_pgd_cls.loss_weight': 0.0016,
            'model.losses.loss_pgd_reg.loss_weight': 0.0016,
        },
    ),
    fitnet=dict(
        method='fitnet',
        options={'model.losses.loss_fitnet.loss_weight': 0.016},
        note='classification loss 0.298 at the end, alone 0.276',
    ),
    at=dict(
        method='at',
        options={'model.losses.loss_at.loss_weight': 1.6},
        note='classification loss 0.267 at the end, alone 0.276',
    ),
    reviewkd=dict(
        method='reviewkd',
        options={'model.losses.loss_reviewkd.loss_weight': 0.04},
        note='classification loss 0.272 at the end, alone 0.276',
    ),
    # Its tokens come from `tools/train.py configs/digits/det_maskd_tokens.py`.
    maskd=dict(
        method='maskd',
        options={
            'model.losses.loss_maskd.loss_weight': 0.0112,
            'model.losses.loss_maskd.tokens': (
                'work_dirs/det_maskd_tokens/iter_400.pth'
            ),
        },
        note='classification loss 0.269 at the end, alone 0.276',
    ),
    ld_cwd=dict(
        config='../digits/det_ld_cwd.py',
        note='ahead on each of three seeds, by 0.6 to 4.8; LD by 4.0 to 4.8',
    ),
    ld_crosskd=dict(config='../digits/det_ld_crosskd.py', seeds=[0, 1, 2, 3, 4]),
    # Its backbone and neck come from `tools/train.py
    # configs/pretrain/digits_det_backbone.py`.
    pretrained=dict(
        config='../pretrain/digits_det_finetune.py',
        seeds=[0, 1, 2, 3, 4],
        note='after 400 iterations without labels, which are not counted',
    ),
)
tuning = dict(
    # Other writers than those of the results. In shorter trainings smaller weights win.
    data='digits_det_tuning',
    seeds=[100],
    factors=[0.0016, 0.008, 0.04, 0.2, 1],
    options={
        'train_dataloader.dataset.data_root': 'data/digits_det_tuning/',
        'val_dataloader.dataset.data_root': 'data/digits_det_tuning/',
        'val_evaluator.ann_file': (
            'data/digits_det_tuning/annotations/instances_val2017.json'
        ),
        'test_dataloader.dataset.data_root': 'data/digits_det_tuning/',
        'test_evaluator.ann_file': (
            'data/digits_det_tuning/annotations/instances_val2017.json'
        ),
        # Only the test at the end counts.
        'train_cfg.val_interval': 1000,
    },
)
