"""What the nodes of a group tell one another. Pure.

The rules kept here:

- Everything is frozen, typed and bounded, so that decoding is validating. Nothing of it is a
  pickle, and nothing becomes one: a command is an encoded Batch, a snapshot an encoded State.
- A log entry's index is not sent: it follows from `previous`.
- `check` is a checksum of an entry's command. Terms alone do not tell two histories apart after
  a majority has lost its memory: both may have an entry of term 3 at index 7.
- A message longer than `PART` bytes travels as several `Part`s, so that no frame is long.
"""

from __future__ import annotations

import zlib
from typing import Annotated, Any, Final, TypeAlias, Union

import msgspec
from msgspec import Meta, Struct

from connmon.errors import ProtocolError
from connmon.protocol.values import LARGEST, Count

#: The first byte of a command, as pysyncobj has it.
BATCH: Final = b"\x00"
NO_OP: Final = b"\x01"

#: Largest command, in bytes: a batch with the largest report that the port takes.
COMMAND_LIMIT: Final = 20 * 1024 * 1024
#: Largest piece of a snapshot, and of a message that is cut, in bytes.
PART: Final = 256 * 1024
#: Largest message that is put together from parts, and largest snapshot, in bytes.
MESSAGE_LIMIT: Final = 2 * COMMAND_LIMIT
SNAPSHOT_LIMIT: Final = 2**31

Index: TypeAlias = Annotated[int, Meta(ge=1, le=LARGEST)]
Check: TypeAlias = Annotated[int, Meta(ge=0, le=2**32 - 1)]
Command: TypeAlias = Annotated[bytes, Meta(min_length=1, max_length=COMMAND_LIMIT)]


def check(command: bytes) -> int:
    """Return the checksum of a command."""
    return zlib.crc32(command)


class Entry(Struct, frozen=True, array_like=True, gc=False):
    """One entry of the log."""

    term: Count
    command: Command


class Ping(Struct, frozen=True, array_like=True, tag="ping"):
    """A sign of life on a link that has nothing else to carry."""


class Ask(Struct, frozen=True, array_like=True, tag="ask"):
    """Would you vote for me, if I stood for election? (pre-vote; Ongaro's thesis, 9.6)"""

    round: Count
    """Of the asking node; the answer repeats it."""
    last_term: Count
    last: Index


class Would(Struct, frozen=True, array_like=True, tag="would"):
    """The yes to Ask. There is no no."""

    round: Count


class RequestVote(Struct, frozen=True, array_like=True, tag="request_vote"):
    term: Count
    last_term: Count
    last: Index


class Vote(Struct, frozen=True, array_like=True, tag="vote"):
    term: Count


class Append(Struct, frozen=True, array_like=True, tag="append"):
    """The leader's word: what it has, after an entry that the follower has to have."""

    term: Count
    commit: Count
    last: Index
    """The leader's last entry. It has all that was ever committed: Raft's leader completeness."""
    previous: Index
    previous_term: Count
    previous_check: Check
    entries: tuple[Entry, ...] = ()


class Install(Struct, frozen=True, array_like=True, tag="install"):
    """A piece of the leader's state as of entry `index`, for a follower that is too far behind."""

    term: Count
    last: Index
    index: Index
    index_term: Count
    index_command: Command
    size: Annotated[int, Meta(ge=0, le=SNAPSHOT_LIMIT)]
    """Of the whole snapshot, in bytes."""
    offset: Count
    data: Annotated[bytes, Meta(max_length=PART)]


class Matched(Struct, frozen=True, array_like=True, tag="matched"):
    """The follower's answer: `next` is what to go on with."""

    term: Count
    """Of the leader that is answered; an answer to an earlier term says nothing about this one."""
    next: Index
    reset: bool
    """What was sent does not fit: begin again at `next`."""
    success: bool
    """All before `next` is as the leader has it."""


class Stale(Struct, frozen=True, array_like=True, tag="stale"):
    """The answer to a leader of an older term: there is a newer one."""

    term: Count


class Propose(Struct, frozen=True, array_like=True, tag="propose"):
    """A follower's command, for the leader to put into the log."""

    request: Count
    command: Command


class Proposed(Struct, frozen=True, array_like=True, tag="proposed"):
    """Where the leader has put it, or (`error`) why not."""

    request: Count
    error: Count | None = None
    index: Count = 0
    term: Count = 0


class TimeoutNow(Struct, frozen=True, array_like=True, tag="timeout_now"):
    """The leader goes: stand for election at once (Ongaro's thesis, 3.10)."""

    term: Count


class Part(Struct, frozen=True, array_like=True, tag="part"):
    """A piece of a longer message."""

    data: Annotated[bytes, Meta(max_length=PART)]
    more: bool


Message: TypeAlias = Union[
    Ask, Would, RequestVote, Vote, Append, Install, Matched, Stale, Propose, Proposed, TimeoutNow
]
Framed: TypeAlias = Union[
    Ping, Part, Ask, Would, RequestVote, Vote, Append, Install, Matched, Stale, Propose, Proposed, TimeoutNow
]
"""What a frame between nodes may hold."""

_encoder: Final = msgspec.msgpack.Encoder()
_decoder: Final[msgspec.msgpack.Decoder[Any]] = msgspec.msgpack.Decoder(Message)


def encode(message: Message) -> bytes:
    return _encoder.encode(message)


def decode(data: bytes | bytearray) -> Message:
    """Return the message. Raises ProtocolError where this is none."""
    try:
        return _decoder.decode(data)  # type: ignore[no-any-return]
    except (msgspec.MsgspecError, ValueError, RecursionError) as error:
        raise ProtocolError(f"a message of another node that cannot be read: {error}") from None


def cut(message: Message) -> list[Message | Part]:
    """Return what is to be sent for a message: itself, or its parts."""
    rough = 0
    if isinstance(message, Append):
        rough = sum(len(entry.command) for entry in message.entries)
    elif isinstance(message, Propose):
        rough = len(message.command)
    elif isinstance(message, Install):
        rough = len(message.index_command)  # the data is short enough by itself
    if rough <= PART:
        return [message]
    data = memoryview(encode(message))
    return [Part(bytes(data[at : at + PART]), at + PART < len(data)) for at in range(0, len(data), PART)]


class Joiner:
    """Puts parts together again."""

    def __init__(self) -> None:
        self._buffer = bytearray()

    def add(self, part: Part) -> Message | None:
        """Return the message that is complete with this part. Raises ProtocolError."""
        if len(self._buffer) + len(part.data) > MESSAGE_LIMIT:
            raise ProtocolError(f"a message of another node of more than {MESSAGE_LIMIT} bytes")
        self._buffer += part.data
        if part.more:
            return None
        data, self._buffer = self._buffer, bytearray()
        return decode(data)
