"""Figures in cells of a terminal: lines, points, bars and maps made of characters. No Textual in it."""
