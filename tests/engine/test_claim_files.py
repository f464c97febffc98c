"""Files of claims: what makes no sense is refused with the place and the reason."""

from __future__ import annotations

from pathlib import Path

import pytest

from cwa_engine.base.errors import InvalidInput
from cwa_engine.claims.table import claims_of_file
from tests.engine.test_claims import written

HOSTILE = {
    "is no TOML": "[[claim]",
    "nobody reads the key `clam` ... did you mean 'claim'": "[[clam]]\nid = 'a'",
    "in double brackets": "[claim]\nid = 'a'",
    "makes no claim": "",
    "nobody reads the key `protocl`": "{head}\nprotocl = 'x'",  # codespell:ignore protocl
    "nobody reads the key `topkk`": "{head}\nrun = {{ topkk = [1] }}",
    "nobody reads the key `valu`": "{head}\nexpect = [{{ what = 'perplexity', valu = 1.0 }}]",  # codespell:ignore valu
    "nothing measures `perplexty`": "{head}\nexpect = [{{ what = 'perplexty' }}]",
    "has a value and no tolerance": "{head}\nexpect = [{{ what = 'perplexity', value = 5 }}]",
    "where its tolerance comes from": "{head}\nexpect = [{{ what = 'perplexity', value = 5, within = 1 }}]",
    "finite number": "{head}\nexpect = [{{ what = 'perplexity', value = nan, within = 1, tolerance_from = 'x' }}]",
    "greater than or equal to 0": "{head}\nexpect = [{{ what = 'perplexity', value = 1, within = -1 }}]",
    "there is no step zeroed": "{head}\nexpect = [{{ what = 'loss_change', step = 'zeroed' }}]",
    "no baseline before it": "{head}\nstep = [{{ name = 'a' }}]\nexpect = [{{ what = 'loss_change', step = 'a' }}]",
    "needs metric, target": "{head}\nno_gate = 'x'\nstep = [{{ name = 'a' }}]\nexpect = [{{ what = 'rank', step = 'a' }}]",
    "does not read target": "{head}\nexpect = [{{ what = 'perplexity', target = 'a[0]' }}]",
    "two steps are called": "{head}\nstep = [{{ name = 'a' }}, {{ name = 'a' }}]",
    "does not stand before it": (
        "{head}\nstep = [{{ name = 'a', weights_of = {{ step = 'b', metric = 'magnitude', k = 1 }} }}]"
    ),
    "nothing is expected": "{head}",
    "unknown metric": (
        "{head}\nno_gate = 'x'\nstep = [{{ name = 'a', run = {{ metrics = ['magnitud'] }} }}]"
        "\nexpect = [{{ what = 'loss_change', step = 'a' }}]"
    ),
    "the id a is taken": "{head}\ncannot = 'x'\n{head}\ncannot = 'x'",
    "id: String should match": "[[claim]]\nid = '../../x'\ntitle = 't'\nsource = 's'\nmodel = 'gpt2'",
    "has its own seq_len": "{head}\nstep = [{{ name = 'a', run = {{ seq_len = 9 }} }}]",
    "nothing is expected of step a": "{head}\nstep = [{{ name = 'a' }}]\nexpect = [{{ what = 'perplexity' }}]",
    "names no weight": "{head}\nno_gate = 'x'\nexpect = [{{ what = 'rank', metric = 'magnitude', target = 'w' }}]",
    "claim a, the baseline": "{head}\nrun = {{ seq_len = 'long' }}\nexpect = [{{ what = 'perplexity' }}]",
    "claim a, step b": (
        "{head}\nno_gate = 'x'\nstep = [{{ name = 'b', run = {{ topk = [-1] }} }}]"
        "\nexpect = [{{ what = 'loss_change', step = 'b' }}]"
    ),
    "fast_perturbation measures damage on other texts": (
        "{head}\nrun = {{ fast_perturbation = true }}\nexpect = [{{ what = 'perplexity' }}]"
    ),
    "step: Input should be": "{head}\nstep = 5",
    "run: Input should be": "{head}\nrun = 5",
    "expect: Input should be": "{head}\nexpect = 'x'",
    "`joined` is for": "{head}\njoined = true\nexpect = [{{ what = 'perplexity' }}]",
}


@pytest.mark.parametrize("said", HOSTILE)
def test_a_file_that_makes_no_sense_is_refused_with_the_place_and_the_reason(said: str, tmp_path: Path) -> None:
    head = "[[claim]]\nid = 'a'\ntitle = 't'\nsource = 's'\nmodel = 'gpt2'"
    path = written(tmp_path, "claims.toml", HOSTILE[said].format(head=head))
    with pytest.raises(InvalidInput) as refused:
        claims_of_file(str(path))
    error = refused.value
    assert all(part in f"{error.message}; {error.hint}" for part in said.split(" ... ")), (error.message, error.hint)


def test_lists_without_end_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InvalidInput):
        claims_of_file(str(written(tmp_path, "deep.toml", "[[claim]]\nid = " + "[" * 20_000)))


def test_blanks_in_a_target_do_not_make_it_another_weight(tmp_path: Path) -> None:
    expect = "expect = [{ what = 'weight_value', target = ' w[3, 4]', step = 's', metric = 'magnitude' }]"
    head = "[[claim]]\nid = 'a'\ntitle = 't'\nsource = 's'\nmodel = 'gpt2'\nno_gate = 'x'\nstep = [{ name = 's' }]\n"
    (claim,) = claims_of_file(str(written(tmp_path, "blanks.toml", head + expect)))
    assert claim.expect[0].target == "w[3,4]"


def test_what_is_no_file_of_claims_is_refused(tmp_path: Path) -> None:
    (tmp_path / "binary.toml").write_bytes(b"\xff\xfe\x00")
    (tmp_path / "large.toml").write_bytes(b"#" * 2_000_001)
    for name, said in (
        (".", "no file"),
        ("nothing.toml", "no file"),
        ("binary.toml", "UTF-8"),
        ("large.toml", "larger"),
    ):
        with pytest.raises(InvalidInput, match=said):
            claims_of_file(str(tmp_path / name))
