"""Write docs/architectures.md anew by running every architecture: `make architectures`, some minutes."""

from __future__ import annotations

import time
from pathlib import Path

import transformers

from cwa_engine.models.anatomy import anatomy_of
from cwa_engine.models.causality import depends_on_batch
from cwa_engine.models.chain import NotAChain, chain_of
from tests.architectures import analyse_tiny, causal_architectures, causal_tiny
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
    loaded = wrap(causal_tiny(model_type)[0])
    try:
        chain_of(loaded)
    except NotAChain as reason:
        return f"no: {reason}"
    return "yes"


def remarks(model_type: str) -> str:
    """What is done otherwise with this architecture: switched to a decoder, computed alone, norms that add one."""
    model, switched = causal_tiny(model_type)
    found = [f"run as a decoder (`{switched}`)"] if switched else []
    if depends_on_batch(model):
        found.append("every text is computed alone")
    if offsets := set(anatomy_of(model).offsets.values()):
        found.append(f"norms multiply by {offsets.pop():g} + w")
    return ", ".join(found)


def main() -> None:
    transformers.logging.set_verbosity_error()  # type: ignore[no-untyped-call]
    rows = []
    for model_type in causal_architectures():
        began = time.monotonic()
        passes, said = outcome(model_type)
        extra = (block_by_block(model_type), remarks(model_type)) if passes == "yes" else ("", "")
        rows.append((model_type, passes, said, *extra))
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
        "Before that each is tried on two texts with a common beginning: a model whose logits there differ sees later",
        "tokens, and its loss is not a perplexity. Where a field of its config makes a decoder of it, it is run as one; others",
        "are refused.",
        "",
        "| model type | passes | weights of the tiny model, or why not | block by block | remarks |",
        "|---|---|---|---|---|",
        *(f"| `{name}` | {passes} | {said} | {parts} | {remark} |" for name, passes, said, parts, remark in rows),
        "",
    ]
    PAGE.write_text("\n".join(lines))


if __name__ == "__main__":
    main()
