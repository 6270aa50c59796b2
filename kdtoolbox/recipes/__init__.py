"""Recipes: the shipped methods, and new recipes made from two models."""
