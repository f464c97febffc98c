"""What control process and workers agree on: where a worker is found, and the messages on the socket between them."""
