"""What knows nothing of models: errors, events, registries, statistics, durations, files, cancelling."""
