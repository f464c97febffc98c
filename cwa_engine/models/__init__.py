"""Models: loading by name, anatomy of parameters, running from any block on."""
