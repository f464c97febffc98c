"""Benchmarks of speed and memory. Each compares our code with the plain way of doing the same, in alternating rounds."""

import os

from cwa_engine.machine.processors import thread_settings

os.environ.update(thread_settings(os.environ))  # the settings of workers; set before torch is imported
