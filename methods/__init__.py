"""Training methods, each a pure function or a small class with its source."""
