"""The targets of a file, whatever its format: masks, arrays, JSON, tables, or one weight in each line."""

from __future__ import annotations

from pathlib import Path

from cwa_engine.base.errors import DataError
from cwa_engine.weight_files.arrays import targets_of_arrays, targets_of_masks
from cwa_engine.weight_files.entries import Listed
from cwa_engine.weight_files.json_lists import targets_of_json
from cwa_engine.weight_files.lists import targets_of_text

MOST_BYTES = 64 * 2**20  # of a list; masks may have any size
_PICKLES = (".pt", ".pth", ".bin", ".pkl", ".pickle", ".ckpt", ".joblib")
_PICKLED = (b"\x80\x02", b"\x80\x03", b"\x80\x04", b"\x80\x05", b"PK\x03\x04")  # torch.save zips its pickle


def read_weights(path: Path) -> list[str]:
    """The targets of a file, in its order. Raises DataError, naming the line or the entry, for what names no weight."""
    return [target for _, target in _listed(path)]


def place_in(path: Path, message: str) -> str:
    """Where in a file the target stands that an error's message begins with: "line 3"; empty where that is not told."""
    return next((place for place, target in _listed(path) if message.startswith(f"'{target}'")), "")


def _listed(path: Path) -> list[Listed]:
    kind = path.suffix.lower()
    try:
        if kind == ".safetensors":
            return [("", target) for target in targets_of_masks(path)]
        if kind in (".npy", ".npz"):
            return [("", target) for target in targets_of_arrays(path)]
        content = _content(path)
    except OSError as error:
        raise DataError(
            f"weights file {path} cannot be read: {error.strerror or error}",
            hint="give a file with one target in each line, or a target like NAME[out,in]",
        ) from error
    if kind in _PICKLES or content.startswith(_PICKLED):
        raise DataError(
            f"weights file {path} is a pickle, which may run any program when it is read",
            hint="save its masks by `safetensors.torch.save_file(masks, 'masks.safetensors')` and give that file",
        )
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise DataError(
            f"weights file {path} cannot be read: it is not UTF-8",
            hint="give text, JSON, CSV, .npy, .npz or .safetensors",
        ) from error
    targets = targets_of_json(text, path) if text.lstrip()[:1] in ("{", "[") else targets_of_text(text, path)
    if not targets:
        raise DataError(f"weights file {path} names no weight", hint="write one target in each line, like NAME[out,in]")
    return targets


def _content(path: Path) -> bytes:
    with path.open("rb") as file:
        content = file.read(MOST_BYTES + 1)
    if len(content) > MOST_BYTES:
        raise DataError(f"weights file {path} has more than {MOST_BYTES // 2**20} MiB", hint="a critical set is small")
    return content
