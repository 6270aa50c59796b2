"""Losses on similarities between samples."""
