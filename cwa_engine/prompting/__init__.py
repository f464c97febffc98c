"""The same prompt by the intact and by the damaged model."""
