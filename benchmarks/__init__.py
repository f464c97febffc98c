"""What the claims about speed and memory rest on: each against the plain way of doing the same, in turns."""
