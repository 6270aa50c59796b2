"""Measure on a few batches whether a distillation can help."""
