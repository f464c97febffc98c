"""A worker process: holds warm models and runs jobs on one device. Only this room imports torch."""
