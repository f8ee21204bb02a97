"""The read path: what a user would want next."""
