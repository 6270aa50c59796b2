"""Losses on feature maps of any task."""
