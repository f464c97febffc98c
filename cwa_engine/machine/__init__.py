"""What the machine, the container and the shell grant this process: processors and memory."""
