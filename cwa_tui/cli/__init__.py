"""What the command line prints: options of several values, live progress, tables."""
