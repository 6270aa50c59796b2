"""Losses that need boxes or detection heads."""
