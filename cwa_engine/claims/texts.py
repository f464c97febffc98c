"""The rows of a dataset as one text. torch-free.

Published perplexities of WikiText-2 are of the rows of its test split joined by blank lines, cut into windows. A run takes
each row for a text of its own, so the joined text is written to a file, which is named by its content. A single text is
scored and measured whole.
"""

from __future__ import annotations

import hashlib
import json

from cwa_engine.base.errors import OutputError
from cwa_engine.base.files import write_whole
from cwa_engine.base.places import state_folder
from cwa_engine.claims.claim import Claim
from cwa_engine.data.datasets import joined_rows
from cwa_engine.hub.access import hub_access
from cwa_engine.hub.sources import HubAccess

_FOLDER = "claim_texts"  # in the state folder


def with_joined_texts(claim: Claim) -> Claim:
    """The claim with a file in place of the dataset whose rows it joins. Raises DataError, OutputError."""
    if not claim.joined:
        return claim
    dataset = str(claim.run["dataset"])
    with hub_access(HubAccess.from_environment()):
        content = json.dumps([joined_rows(dataset, column=claim.run.get("text_column"))]).encode()
    path = state_folder() / _FOLDER / f"{hashlib.sha256(content).hexdigest()}.json"
    try:
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        if not path.exists():
            write_whole(path, content)
    except OSError as error:
        raise OutputError(
            f"{path} cannot be written: {error.strerror}", hint="make room in the state folder"
        ) from error
    fields = {name: value for name, value in claim.run.items() if name not in ("dataset", "text_column")}
    return claim.model_copy(update={"run": {**fields, "data_file": str(path)}, "joined": False})
