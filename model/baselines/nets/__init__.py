"""Neural baselines: sequence encoders that are trained, tuned and asked as our own net is. One architecture per file."""
