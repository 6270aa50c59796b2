"""Checkpoint files: find, read, check and write them."""
