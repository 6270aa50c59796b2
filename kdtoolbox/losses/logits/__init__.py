"""Losses on class logits of any task."""
