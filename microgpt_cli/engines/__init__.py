"""Who computes: faster ways to do what `model/` says, checked against it."""
