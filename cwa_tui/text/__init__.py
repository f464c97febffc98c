"""How things are written on a terminal: numbers, states, characters that it can show. No Textual in it."""
