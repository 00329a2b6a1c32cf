"""Sweeps: what one consists of, how far its jobs are, and one job of it; knows neither hydra nor torch."""
