"""`longwave demo`: the whole path on real data. The trainer is driven as the command `longwave-train`, never imported."""
