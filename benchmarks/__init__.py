"""What the claims about speed and memory rest on: each against the plain way of doing the same, in turns."""

import os

from cwa_engine.machine.processors import thread_settings

os.environ.update(thread_settings(os.environ))  # as for workers, and before torch is imported
