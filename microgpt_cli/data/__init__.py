"""Data: text, tokenizers, token ids and batches."""
