# Segmentation on DigitScenes: a small semantic FPN learns from one twice as wide.
student = '../digits/seg_student.py'
teacher = dict(
    config='../digits/seg_teacher.py',
    checkpoint='../digits/seg_teacher.safetensors',
    # No augmentation: each scene has one view, and a cache changes the rounding alone.
    cache=dict(path='work_dirs/caches/digits_seg', views=1, dtype='float32'),
)
metric = 'mIoU'
data = 'digits_seg'
size = [128, 128]
seeds = [0, 1, 2]
# The weights in `options` are those of the method's recipe times a factor that `--tune`
# has found.
rows = dict(
    student=dict(seeds=[0, 1, 2, 3, 4]),
    cwd=dict(
        method='cwd',
        options={'model.losses.loss_cwd.loss_weight': 0.6},
        seeds=[0, 1, 2, 3, 4],
    ),
    kd=dict(
        method='kd',
        options={'model.losses.loss_kd.loss_weight': 0.04},
        note='it counts each pixel alike: with more weight the digits get lost',
    ),
    # With smaller queues than for Cityscapes, as in configs/digits/seg_cirkd.py.
    cirkd=dict(
        method='cirkd',
        options={
            'model.losses.loss_mini_batch.pool_size': 4,
            'model.losses.loss_memory.pixel_slots': 2000,
            'model.losses.loss_memory.region_slots': 200,
            'model.losses.loss_memory.pixel_keys': 1024,
            'model.losses.loss_memory.region_keys': 256,
            'model.losses.loss_memory.max_anchors': 1024,
            'model.losses.loss_kd.loss_weight': 0.04,
            'model.losses.loss_mini_batch.loss_weight': 0.04,
            'model.losses.loss_memory.loss_weight': 0.004,
        },
        note='ahead on each seed, by 0.5 to 1.5',
    ),
    dist=dict(
        method='dist',
        options={'model.losses.loss_dist.loss_weight': 5.0},
        seeds=[0, 1, 2, 3, 4],
    ),
    ifvd=dict(
        method='ifvd',
        options={
            'model.losses.loss_ifvd.loss_weight': 0.8,
            'model.losses.loss_kd.loss_weight': 0.04,
        },
        note='it contains KD on pixels; with more weight it scores lower',
    ),
    # It compares maps of one size, which this pair has in the head.
    dsd=dict(
        method='dsd',
        options={
            'model.recorders.student.layers': 'decode_head.scale_heads.*',
            'model.recorders.teacher.layers': 'decode_head.scale_heads.*',
            'model.losses.loss_psd.loss_weight': 8.0,
            'model.losses.loss_csd.loss_weight': 0.08,
            'model.losses.loss_kd.loss_weight': 0.008,
        },
        note='it contains KD on pixels; with more weight it scores lower',
    ),
    bpkd=dict(
        method='bpkd',
        options={'model.losses.loss_bpkd.loss_weight': 0.0016},
        seeds=[0, 1, 2, 3, 4],
    ),
    attnfd=dict(
        method='attnfd',
        options={
            'model.losses.loss_stages.loss_weight': 0.0032,
            'model.losses.loss_head.loss_weight': 0.0032,
        },
        note='its weight is nearly 0; with more it scores lower',
    ),
    lskd=dict(
        method='lskd',
        options={'model.losses.loss_lskd.loss_weight': 0.024},
        note='it counts each pixel alike: with more weight the digits get lost',
    ),
    dkd=dict(
        method='dkd',
        options={'model.losses.loss_dkd.loss_weight': 0.008},
        note='it counts each pixel alike: with more weight the digits get lost',
    ),
    at=dict(
        method='at',
        options={'model.losses.loss_at.loss_weight': 80.0},
        note='with more weight it scores lower',
    ),
    skd=dict(
        method='skd',
        options={
            'model.losses.loss_kd.loss_weight': 0.016,
            'model.losses.loss_pairwise.loss_weight': 0.0008,
            'model.losses.loss_holistic.loss_weight': 0.0016,
        },
        note='it contains KD on pixels; with more weight the digits get lost',
    ),
)
tuning = dict(
    # Other writers than those of the results. In shorter trainings smaller weights win.
    data='digits_seg_tuning',
    seeds=[100],
    factors=[0.0016, 0.008, 0.04, 0.2, 1, 5],
    options={
        'train_dataloader.dataset.data_root': 'data/digits_seg_tuning/',
        'val_dataloader.dataset.data_root': 'data/digits_seg_tuning/',
        'test_dataloader.dataset.data_root': 'data/digits_seg_tuning/',
        # Only the test at the end counts.
        'train_cfg.val_interval': 1000,
    },
)
