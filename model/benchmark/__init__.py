"""`longwave-train benchmark`: from the name of a data set to a file of figures that can be compared with others."""
