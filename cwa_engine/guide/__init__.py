"""The guide: models that are known by an alias."""
