"""Looking into a model: where it attends, what each layer would say, what surprises it, what it has read before."""
