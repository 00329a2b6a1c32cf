"""Checkpoints: published, loaded, verified."""
