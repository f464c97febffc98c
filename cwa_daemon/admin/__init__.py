"""Looking after a daemon from outside: start, stop, examine, repair, and the systemd unit."""
