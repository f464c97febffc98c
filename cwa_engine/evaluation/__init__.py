"""How good a model is: perplexity."""
