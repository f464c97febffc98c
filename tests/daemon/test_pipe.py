"""What control process and workers say to each other arrives as it was said."""

from __future__ import annotations

import logging
from typing import get_args

import msgpack
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cwa_daemon.pipe.messages import Command, Heartbeat, Report, Unloaded, command_reader, encode, report_reader

numbers = st.integers(-(2**63), 2**63 - 1)
floats = st.floats(allow_nan=False)
json_values = st.recursive(
    st.none() | st.booleans() | numbers | floats | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=5,
)
st.register_type_strategy(int, numbers)
st.register_type_strategy(float, floats)
st.register_type_strategy(dict, lambda _: st.dictionaries(st.text(max_size=5), json_values, max_size=3))


COMMANDS = st.one_of(*map(st.from_type, get_args(Command)))
REPORTS = st.one_of(*map(st.from_type, get_args(Report)))


@given(st.lists(COMMANDS, max_size=4), st.integers(1, 50))
def test_commands_arrive_as_they_were_sent_however_the_bytes_are_cut(sent: list[Command], piece: int) -> None:
    stream, reader = b"".join(map(encode, sent)), command_reader()
    pieces = [stream[start : start + piece] for start in range(0, len(stream), piece)]
    assert [command for part in pieces for command in reader.feed(part)] == sent


@given(st.lists(REPORTS, max_size=4))
def test_reports_arrive_as_they_were_sent(sent: list[Report]) -> None:
    assert list(report_reader().feed(b"".join(map(encode, sent)))) == sent


def test_a_message_that_is_none_is_logged_and_the_next_ones_are_read(caplog: pytest.LogCaptureFixture) -> None:
    stream = msgpack.packb({"type": "song"}) + msgpack.packb({"type": "unloaded"}) + encode(Heartbeat(processor_s=1.0))
    with caplog.at_level(logging.ERROR):
        assert list(report_reader().feed(stream)) == [Heartbeat(processor_s=1.0)]
    assert caplog.text.count("a message is not understood") == 2


def test_fields_that_another_version_added_are_ignored_and_tags_are_what_they_always_were() -> None:
    packed = msgpack.packb({"type": "unloaded", "request": 3, "names": ["gpt2"], "since": 7})
    assert list(report_reader().feed(packed)) == [Unloaded(request=3, names=("gpt2",))]
    assert msgpack.unpackb(encode(Heartbeat(processor_s=1.0))) == {
        "type": "heartbeat",
        "processor_s": 1.0,
        "memory": None,
    }
