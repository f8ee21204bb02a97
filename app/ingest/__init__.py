"""The way of a written event: validate, append, advance."""
