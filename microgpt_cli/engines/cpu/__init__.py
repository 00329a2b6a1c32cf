"""Functions in C for a CPU, compiled here by the machine's own compiler when they are first wanted."""
