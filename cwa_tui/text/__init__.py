"""How things are written on a terminal: numbers, states, and what its encoding lacks. No Textual in it."""
