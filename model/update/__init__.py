"""`longwave-train update`: new events since the running bundle, learned in minutes."""
