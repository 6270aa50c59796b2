"""Losses on feature maps, for detection and segmentation."""
