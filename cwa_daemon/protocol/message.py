"""The common base of requests and views."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict


class Message(BaseModel):
    model_config = ConfigDict(extra="forbid", defer_build=True)  # a client that starts needs few of these
