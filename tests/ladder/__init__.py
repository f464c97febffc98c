"""Small models that were trained, for tests of what random weights do not show; README.md says how."""
