"""What keeps a measurement from being taken."""


class BenchError(Exception):
    """The service cannot be measured; the message says why, for people."""
