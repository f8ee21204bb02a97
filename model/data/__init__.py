"""Data: importers, cleaning, the canonical data set, splits, sequences and the synthetic world."""
