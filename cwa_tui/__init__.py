"""Faces of cwtool on a terminal: the full-screen interface, and what the command line prints."""
