"""Losses that need label maps or segmentation heads."""
