"""What studies ask, one module each."""
