"""Threads that wait for one another must not spin, in these processes as in the daemon's: others compute beside them."""

import os

from cwa_engine.machine.processors import thread_settings

os.environ.update(thread_settings(os.environ))  # before torch is imported
