"""The lowest room, which knows no models: errors, events, registries, statistics, durations, files, cancellation."""
