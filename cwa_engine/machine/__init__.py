"""The processors and the memory that the machine, the container and the shell grant this process."""
