"""Sweeps: the record of a sweep, its jobs, their progress and the Optuna study. Imports neither hydra nor torch."""
