"""Who computes: faster ways to do what `model/` says, each checked against it.

For training `training.py` chooses.
"""
