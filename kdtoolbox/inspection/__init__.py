"""Dry runs: what the models of a config compute, and what does not fit."""
