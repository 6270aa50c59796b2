# Methods that need RoIs, on COCO: Faster R-CNN R50 learns from R101 in 12 epochs.
student = 'mmdet::faster_rcnn/faster-rcnn_r50_fpn_1x_coco.py'
# Its weights are those that mmdetection publishes.
teacher = dict(config='mmdet::faster_rcnn/faster-rcnn_r101_fpn_2x_coco.py')
metric = 'coco/bbox_mAP'
scale = 100
data = 'coco'
size = [800, 1344]
# train2017 without the images that mmdetection leaves out.
images = 117266
gpus = 8
seeds = [0]
# We know of no published number of these methods for this pair.
rows = dict(
    student=dict(),
    response=dict(method='response'),
    dkd=dict(method='dkd'),
    defeat=dict(method='defeat'),
    fcfd=dict(method='fcfd'),
)
