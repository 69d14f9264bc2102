"""The link over which a container's connections go: whole whatever the pieces, and nothing believed that comes over it."""

from __future__ import annotations

import asyncio
from itertools import cycle

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agentrl_sandboxes.relay import ABORT, DATA, END, HEAD, OPEN, OPENED, PIECE, TAKEN, WINDOW, Channel, Link, Tcp


class Wire(asyncio.Transport):
    """Takes what is written, and keeps it while it is stopped up."""

    def __init__(self) -> None:
        super().__init__()
        self.out, self.kept = b"", 0
        self.stopped_up = False
        self.reading = self.ended = self.gone = False

    def set_write_buffer_limits(self, high: int | None = None, low: int | None = None) -> None:
        assert high == 0

    def write(self, data: bytes | bytearray | memoryview) -> None:
        self.out += data
        self.kept += len(data) if self.stopped_up else 0

    def get_write_buffer_size(self) -> int:
        return self.kept

    def pause_reading(self) -> None:
        self.reading = False

    def resume_reading(self) -> None:
        self.reading = True

    def write_eof(self) -> None:
        self.ended = True

    def is_closing(self) -> bool:
        return self.gone

    def close(self) -> None:
        self.gone = True

    abort = close


def end(link: Link, number: int = 7) -> tuple[Tcp, Wire]:
    """A near end on a channel of this link, that goes."""
    channel = Channel(link, number)
    near, wire = Tcp(lambda _: channel), Wire()
    near.connection_made(wire)
    channel.near = near
    near.go()
    return near, wire


@given(data=st.binary(max_size=3000), cuts=st.lists(st.integers(1, 40), min_size=1, max_size=20), early=st.booleans())
async def test_bytes_come_whole_whatever_the_pieces(data: bytes, cuts: list[int], early: bool) -> None:
    sent = bytearray()
    out = Link(sent.extend)
    channel = Channel(out, 7)
    near = Tcp(lambda _: channel)
    near.connection_made(Wire())
    at, numbers = 0, cycle(cuts)
    if not early:
        near.go()
    while at < len(data):
        size = next(numbers)
        near.data_received(data[at : at + size])
        at += size
    near.eof_received()
    if early:
        near.go()
    link = Link(bytearray().extend)
    _, wire = end(link)
    at = 0
    while at < len(sent):
        size = next(numbers)
        link.hear(bytes(sent[at : at + size]))
        at += size
    assert (wire.out, wire.ended) == (data, True)


async def test_no_more_is_read_than_the_far_side_takes() -> None:
    near, wire = end(Link(bytearray().extend))
    near.data_received(bytes(WINDOW - 1))
    assert wire.reading
    near.data_received(b"x")
    assert not wire.reading
    near.taken(1)
    assert wire.reading


async def test_what_is_owed_is_paid_when_it_is_out() -> None:
    said = bytearray()
    near, wire = end(Link(said.extend))
    near.take(b"abc")
    assert said == HEAD.pack(TAKEN, 7, 3)
    said.clear()
    wire.stopped_up = True
    near.take(b"abcd")
    assert said == b""
    wire.kept = 0
    near.resume_writing()
    assert said == HEAD.pack(TAKEN, 7, 4)


@pytest.mark.parametrize(
    "frames",
    [
        HEAD.pack(99, 7, 0),
        HEAD.pack(OPEN, 8, 0),  # where nothing may be opened
        HEAD.pack(OPEN, 7, 0),
        HEAD.pack(DATA, 7, PIECE + 1),
        HEAD.pack(DATA, 7, 0xFFFFFFFF),
        b"".join(HEAD.pack(DATA, 7, PIECE) + bytes(PIECE) for _ in range(2 + WINDOW // PIECE)),
    ],
)
async def test_nonsense_is_an_error(frames: bytes) -> None:
    link = Link(bytearray().extend)
    _, wire = end(link)
    wire.stopped_up = True
    with pytest.raises(ValueError, match=r"7|8|bytes"):
        link.hear(frames)


async def test_nothing_is_taken_for_a_connection_that_is_not_carried_yet() -> None:
    link = Link(bytearray().extend, lambda channel, place: None)
    link.hear(HEAD.pack(OPEN, 3, 0))
    with pytest.raises(ValueError, match="not open yet"):
        link.hear(HEAD.pack(DATA, 3, 1) + b"x")


async def test_frames_of_what_was_given_up_are_dropped() -> None:
    said = bytearray()
    link = Link(said.extend)
    near, wire = end(link)
    link.hear(HEAD.pack(ABORT, 7, 0))
    assert wire.gone
    near.connection_lost(ConnectionResetError())
    for frame in (HEAD.pack(DATA, 7, 1) + b"x", HEAD.pack(END, 7, 0), HEAD.pack(TAKEN, 7, 1), HEAD.pack(OPENED, 7, 0)):
        link.hear(frame)
    assert (said, link.channels) == (b"", {})


async def test_a_far_end_that_went_while_its_host_was_on_its_way_ends_that() -> None:
    said, channels = bytearray(), list[Channel]()
    link = Link(said.extend, lambda channel, place: channels.append(channel))
    link.hear(HEAD.pack(OPEN, 3, 0) + HEAD.pack(ABORT, 3, 0))
    near, wire = Tcp(lambda _: channels[0]), Wire()
    near.connection_made(wire)
    channels[0].go(near)
    assert (wire.gone, said, link.channels) == (True, b"", {})


async def test_both_directions_over_is_the_end_of_a_channel() -> None:
    said = bytearray()
    link = Link(said.extend)
    near, wire = end(link)
    near.eof_received()
    assert not wire.gone
    link.hear(HEAD.pack(END, 7, 0))
    near.connection_lost(None)
    assert (said, link.channels, wire.gone) == (HEAD.pack(END, 7, 0), {}, True)


async def test_an_end_that_went_before_its_peer_came_ends_the_peer() -> None:
    near, peer = Tcp(lambda _: None), Tcp(lambda _: None)
    first, second = Wire(), Wire()
    near.connection_made(first)
    peer.connection_made(second)
    first.close()
    near.connection_lost(None)
    near.go(peer)
    assert second.gone
