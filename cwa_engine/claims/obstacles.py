"""Why a claim cannot be measured on this machine, as far as that is known without a run. torch-free."""

from __future__ import annotations

import importlib.util
from dataclasses import dataclass
from pathlib import Path

from cwa_engine.base.errors import InvalidInput, ModelGated, ModelNotFound
from cwa_engine.claims.claim import Claim
from cwa_engine.data.datasets import parse_dataset
from cwa_engine.guide.catalog import catalog_model
from cwa_engine.hub.sources import HubAccess, SourceKind, models_on_disk, resolve

_NEVER = 2  # exit code of a claim that no machine can measure with cwtool


@dataclass(frozen=True, slots=True)
class Obstacle:
    """What is missing, and the exit code of a command that fails for it."""

    reason: str
    exit_code: int
    short: str  # for a list


def obstacle_to(claim: Claim, on_disk: dict[str, int] | None = None) -> Obstacle | None:
    """None for a claim whose model and texts are here. `on_disk` is `models_on_disk`, where several are asked for.

    Memory is not looked at here: the run is refused where the plan of its model does not fit.
    """
    return never(claim) or _model_missing(claim, on_disk) or _texts_missing(claim)


def never(claim: Claim) -> Obstacle | None:
    """What keeps a claim from being measured by cwtool on any machine."""
    return Obstacle(claim.cannot, _NEVER, claim.cannot) if claim.cannot else None


def _model_missing(claim: Claim, on_disk: dict[str, int] | None) -> Obstacle | None:
    try:
        source = resolve(claim.model)
    except (ModelNotFound, InvalidInput) as error:
        return Obstacle(error.message, error.exit_code, "model not found")
    if source.kind is not SourceKind.HUB:
        return None
    if on_disk is None:
        on_disk = models_on_disk(HubAccess.from_environment())
    if source.location in on_disk:
        return None
    entry = catalog_model(claim.model)
    if entry and entry.gated:
        return Obstacle(
            f"{claim.model} is not on disk, and gated: accept its licence at {entry.licence_page}, set HF_TOKEN, and load it",
            ModelGated.exit_code,
            "gated, not on disk",
        )
    return Obstacle(
        f"{claim.model} is not on disk; `cwtool models pull {claim.model}` fetches it",
        ModelNotFound.exit_code,
        "not on disk",
    )


def _texts_missing(claim: Claim) -> Obstacle | None:
    for fields in (claim.run, *(step.run for step in claim.step)):
        path, dataset = fields.get("data_file"), fields.get("dataset")
        if path and not Path(str(path)).is_file():
            return Obstacle(f"the texts {path} are not here", ModelNotFound.exit_code, "texts missing")
        if dataset and importlib.util.find_spec("datasets") is None:
            return Obstacle(
                f"the texts {dataset} need `pip install 'cwtool[eval]'`", ModelNotFound.exit_code, "needs [eval]"
            )
        if dataset and _is_out_of_reach(str(dataset)):
            return Obstacle(
                f"the texts {dataset} are not on disk, and the Hub is switched off (HF_HUB_OFFLINE)",
                ModelNotFound.exit_code,
                "texts offline",
            )
    return None


def _is_out_of_reach(dataset: str) -> bool:
    """Whether a dataset of the Hub is neither in the cache nor may be fetched."""
    access, named = HubAccess.from_environment(), parse_dataset(dataset)
    if named.path.startswith("/") or not access.datasets_offline:
        return False
    return not any(Path(access.datasets_cache or "").glob(f"{named.path.replace('/', '___')}*"))
