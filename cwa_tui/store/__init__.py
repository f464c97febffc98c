"""What the full-screen interface knows, and the session that keeps it up to date. No Textual in it."""
