"""All that can be found out about one weight of a loaded model."""
