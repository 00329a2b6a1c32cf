"""Decoding on a GPU with CUDA graphs."""
