"""Batches → loss → optimizer → checkpoint."""
