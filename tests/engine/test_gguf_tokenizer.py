"""The tokens of a GGUF file are those that llama.cpp makes of its vocabulary."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from cwa_engine.models.loading import load_model
from tests.gguf_files import FAMILIES, pairs_vocabulary, pieces_vocabulary, tiny, write_family

TEXTS = (
    "I've been 'told he's there, 'RE you sure? We'Ve a'lL don't",
    "0 1 12 123 1234 12345 3.14 1,000,000 ½ ² ١٢٣ Ⅻ v2x4",
    "  two  spaces   three\n\n\nlines \n \n\ttab\t\tend  ",
    "CamelCaseWord HTTPServer iPhone aB AbC",
    "日本語のテキスト、漢字。 我想在apple工作1314151天～",
    "Привет, мир! 안녕하세요 שלום مرحبا नमस्ते สวัสดี",
    "🚀 (normal) 😶‍🌫️ ✅ 🦙🦙 e.g.",
    "def f(x):\n    return {'a': [1, 2], \"b\": x**2}  # ok\n\n\nclass A(B):\n\tpass\n",
    "====>>> ---- ......!!!!?????? ``` ''''''\"\"\"\" $100 £5 50% a_b__c \\ / ~ ^ |",
    "…“quoted”‘x’—dash– a\r\nb\r\n\r\nc\u00a0d\u3000e\u0000f\u001b[0m",
    "x\u0301y ab\u200bcd a/b//c\n/d end.\n\n",
    " leading", "", " ", "\n",
)  # fmt: skip

# Made with llama.cpp (llama_tokenize, package llama-cpp-python 0.3.36) of files with the vocabularies below. null where
# llama.cpp is known to cut otherwise than the tokenizer that it stands for: combining marks, and spaces within a range.
EXPECTED: dict[str, list[list[int] | None]] = json.loads(Path(__file__).with_name("gguf_tokens.json").read_text())


def load(tmp_path: Path, **tokenizer: Any) -> Any:
    """The tokenizer of a small model with this vocabulary."""
    family, size = FAMILIES["llama"], len(tokenizer["tokens"])
    model = tiny(family, vocab_size=size)
    path = write_family(
        tmp_path / "model.gguf", family, model, tokenizer={"merges": None, "add_bos_token": None, **tokenizer}
    )
    return load_model(str(path)).tokenizer


@pytest.mark.parametrize("pre", [name for name in EXPECTED if not name.startswith("sentencepiece")])
def test_text_is_cut_as_the_files_pre_tokenizer_says(pre: str, tmp_path: Path) -> None:
    tokenizer = load(tmp_path, **pairs_vocabulary(TEXTS, pre))
    for text, expected in zip(TEXTS, EXPECTED[pre], strict=True):
        assert expected in (None, tokenizer(text)["input_ids"]), text
    assert [tokenizer.decode(tokenizer(text, add_special_tokens=False)["input_ids"]) for text in TEXTS] == list(TEXTS)


@pytest.mark.parametrize("prefix", [True, False])
def test_pieces_of_sentencepiece_merge_by_score_and_fall_back_to_bytes(prefix: bool, tmp_path: Path) -> None:
    tokenizer = load(tmp_path, **pieces_vocabulary(TEXTS), add_space_prefix=prefix)
    texts = [*TEXTS, "<|user|>hello <|user|> 日"]
    assert tokenizer(texts)["input_ids"] == EXPECTED[f"sentencepiece{' with a prefix' * prefix}"]
    assert [tokenizer.decode(tokenizer(text, add_special_tokens=False)["input_ids"]) for text in TEXTS] == list(TEXTS)
