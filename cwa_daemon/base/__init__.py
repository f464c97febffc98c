"""What every room of the daemon may use: settings, locks, keys, roles, and where a daemon is found."""
