"""Text → tokenizer → tokens → batches."""
