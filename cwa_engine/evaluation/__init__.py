"""Measuring a model: loss, perplexity, divergence from the intact model."""
