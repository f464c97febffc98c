"""Pages of the documentation, and what makes some of them from the code."""
