"""With which exit codes a worker ends that cannot go on."""

from __future__ import annotations

DEVICE_LOST = 70  # its device can no longer be trusted
NO_DEVICE = 71  # this machine does not have its device
