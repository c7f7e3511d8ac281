"""Training scripts on real data."""
