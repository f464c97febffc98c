"""The roles of keys: viewers see, runners also run and look after their own jobs, admins may do all."""

from __future__ import annotations

from enum import StrEnum


class Role(StrEnum):
    """In their order: each may do what those before may."""

    VIEWER = "viewer"
    RUNNER = "runner"
    ADMIN = "admin"
