"""What came of an experiment, told from the archive: `longwave experiment NAME`. docs/experiments.md has what it means."""
