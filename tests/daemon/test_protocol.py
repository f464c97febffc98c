"""The wire: whatever arrives is a sane message or a clear refusal."""

from __future__ import annotations

import contextlib

import msgpack
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cwa_daemon.protocol import MAX_DEPTH, MAX_MESSAGE_BYTES, Submit, decode, encode, parse_request, peek
from cwa_engine.base.errors import CwaError, InvalidInput, error_from_dict
from cwa_engine.spec import RunSpec

plain = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**64 - 1)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=12,
)


@given(st.dictionaries(st.text(), plain, max_size=5))
def test_what_is_sent_is_what_arrives(message: dict[str, object]) -> None:
    assert decode(encode(message)) == message


@settings(max_examples=2000)
@given(st.binary(max_size=200))
def test_random_bytes_are_refused_or_read_but_never_raise_anything_else(frame: bytes) -> None:
    with contextlib.suppress(InvalidInput):
        parse_request(decode(frame))


@pytest.mark.parametrize(
    ("message", "why"),
    [
        ([1, 2], "is a map"),
        ({"op": float("nan")}, "finite"),
        ({"op": float("inf")}, "finite"),
        ({b"op": 1}, "strings"),
        ({"op": msgpack.ExtType(5, b"x")}, "extension"),
        ({"op": msgpack.Timestamp(1)}, "Timestamp"),
    ],
)
def test_what_is_no_plain_map_is_refused(message: object, why: str) -> None:
    with pytest.raises(InvalidInput, match=why):
        decode(msgpack.packb(message))


def test_deep_nesting_is_refused() -> None:
    value: object = 0
    for _ in range(MAX_DEPTH + 2):
        value = [value]
    with pytest.raises(InvalidInput, match="nested"):
        decode(msgpack.packb({"op": value}))


def test_a_message_over_the_limit_is_refused_on_both_sides() -> None:
    large = {"text": "x" * MAX_MESSAGE_BYTES}
    with pytest.raises(InvalidInput, match="exceeds"):
        encode(large)
    with pytest.raises(InvalidInput, match="exceeds"):
        decode(msgpack.packb(large))


def test_a_bad_request_is_named_by_its_field() -> None:
    with pytest.raises(InvalidInput, match="limit"):
        parse_request({"id": 1, "op": "jobs", "limit": 0})
    with pytest.raises(InvalidInput, match="op"):
        parse_request({"id": 1, "op": "__class__"})
    with pytest.raises(InvalidInput, match="surprise"):
        parse_request({"id": 1, "op": "status", "surprise": 1})


def test_a_token_is_never_shown() -> None:
    request = Submit(id=1, spec=RunSpec(model="m"), client_key="12345678", access={"token": "hf_secret"})  # type: ignore[arg-type]
    assert "hf_secret" not in repr(request)


def test_every_error_survives_the_wire_with_its_kind() -> None:
    kinds = [CwaError]
    for kind in kinds:
        kinds.extend(kind.__subclasses__())
        error = kind("what happened", hint="what to do")
        back = error_from_dict(decode(encode({"error": error.to_dict()}))["error"])
        assert (type(back), back.message, back.hint, back.exit_code) == (
            kind,
            "what happened",
            "what to do",
            kind.exit_code,
        )
    assert len({kind.code for kind in kinds}) == len(kinds)


def test_an_event_with_what_is_no_text_arrives_and_shows_it() -> None:
    assert decode(encode({"text": "a\udcffb"}, unicode_errors="backslashreplace")) == {"text": "a\\udcffb"}


@given(st.binary(max_size=200))
def test_the_beginning_of_anything_can_be_looked_at(frame: bytes) -> None:
    op, number = peek(frame)
    assert op is None or isinstance(op, str)
    assert number is None or isinstance(number, int)


def test_op_and_id_are_found_at_the_beginning_of_what_cannot_be_decoded() -> None:
    assert peek(msgpack.packb({"op": "status", "id": 7, "x": [[]] * 500})) == ("status", 7)
    assert peek(b"\x83\xa2id\x07\xa2op\xa4jobs\xa1x\xc1") == ("jobs", 7)
