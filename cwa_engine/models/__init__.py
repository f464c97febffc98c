"""From a name to a model in memory, and what each of its parameters is."""
