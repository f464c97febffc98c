"""Whether the Hub has a model, asked without downloading anything. torch-free, and without the Hub's library: it is quick."""

from __future__ import annotations

import urllib.error
import urllib.parse
import urllib.request
from dataclasses import dataclass

from cwa_engine.hub.sources import HubAccess

_ABSENT = (401, 403, 404)  # without a token the Hub answers 401 for a repository that does not exist


@dataclass(frozen=True, slots=True)
class HubAnswer:
    """Whether the Hub has a model; None, with the reason, where it cannot be asked."""

    has_it: bool | None
    reason: str = ""


def ask_hub(repo: str, revision: str | None, access: HubAccess, timeout_s: float = 5.0) -> HubAnswer:
    """Ask the Hub for a model and its revision. It waits for the answer at most about `timeout_s` seconds."""
    access = access.filled_in()
    page = f"{access.endpoint}/api/models/{urllib.parse.quote(repo)}"
    if revision:
        page += f"/revision/{urllib.parse.quote(revision, safe='')}"
    headers = {"Authorization": f"Bearer {access.token}"} if access.token else {}
    try:
        with urllib.request.urlopen(urllib.request.Request(page, headers=headers), timeout=timeout_s):
            return HubAnswer(True)
    except urllib.error.HTTPError as error:
        if error.code in _ABSENT:
            return HubAnswer(False)
        return HubAnswer(None, f"the Hub answers {error.code}")
    except (OSError, ValueError) as error:  # URLError is an OSError; ValueError: an endpoint that is no address
        reason = getattr(error, "reason", error)
        return HubAnswer(None, f"{access.endpoint} cannot be reached: {getattr(reason, 'strerror', None) or reason}")
