"""One measurement a file; each takes what it needs and returns a `Part`."""
