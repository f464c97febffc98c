"""Write docs/architectures.md anew by running every architecture: `make architectures`, some minutes."""

from __future__ import annotations

import time
from pathlib import Path

import transformers

from cwa_engine.models.chain import NotAChain, chain_of
from tests.architectures import analyse_tiny, causal_architectures, tiny_architecture
from tests.engine.conftest import wrap

PAGE = Path(__file__).with_name("architectures.md")
_WIDEST = 110


def outcome(model_type: str) -> tuple[str, str]:
    """("yes", weights) or ("no", why), in the words of whoever refused."""
    try:
        return "yes", f"{analyse_tiny(model_type):,}"
    except Exception as error:
        said = (str(error).strip() or type(error).__name__).splitlines()[0]
        return "no", said[:_WIDEST].replace("|", "\\|")


def block_by_block(model_type: str) -> str:
    """ "yes", or why the gradients of this architecture are kept all at once."""
    loaded = wrap(tiny_architecture(model_type))
    try:
        chain_of(loaded)
    except NotAChain as reason:
        return f"no: {reason}"
    return "yes"


def main() -> None:
    transformers.logging.set_verbosity_error()
    rows = []
    for model_type in causal_architectures():
        began = time.monotonic()
        passes, said = outcome(model_type)
        rows.append((model_type, passes, said, block_by_block(model_type) if passes == "yes" else ""))
        print(*rows[-1], f"{time.monotonic() - began:.1f} s", flush=True)
    passed = sum(row[1] == "yes" for row in rows)
    swept = sum(row[3] == "yes" for row in rows)
    lines = [
        "# Architectures",
        "",
        "Made by `make architectures`; do not edit. For every model type that `AutoModelForCausalLM` of transformers",
        f"{transformers.__version__} has a class for, a tiny model is built from its config class, its weights are scored,",
        "the top five zeroed, the damage measured, and the weights put back, as `tests/engine/test_architectures.py` does.",
        f"{passed} of {len(rows)} pass. `--gradients sweep` can take {swept} of these block by block.",
        "",
        "| model type | passes | weights of the tiny model, or why not | block by block |",
        "|---|---|---|---|",
        *(f"| `{name}` | {passes} | {said} | {parts} |" for name, passes, said, parts in rows),
        "",
    ]
    PAGE.write_text("\n".join(lines))


if __name__ == "__main__":
    main()
