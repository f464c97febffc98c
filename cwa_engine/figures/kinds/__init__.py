"""The figures: a module for each kind, with `FIGURES`. torch-free."""
