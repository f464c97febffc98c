"""Damage: what is done to weights, to which, and what follows."""
