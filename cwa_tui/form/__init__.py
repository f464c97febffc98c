"""A run as a person types it, on a command line or into the form. No Textual in it."""
