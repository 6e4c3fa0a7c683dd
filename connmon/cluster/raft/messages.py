"""The messages that the nodes of a group send to each other. Pure.

The rules kept here:

- Everything is frozen, typed and bounded, so that decoding validates. Nothing is a pickle, and nothing
  becomes one: a command is an encoded Batch, a checkpoint an encoded StateMachine.
- A log entry's index is not sent: it follows from `previous`.
- `check` is a checksum of an entry's command. Terms alone do not distinguish two histories after a majority
  has lost its memory: both may have an entry of term 3 at index 7.
- A message longer than `PART_BYTES` travels as several `Part`s, so that no frame is long.
"""

from __future__ import annotations

import zlib
from typing import Annotated, Any, Final, Protocol, TypeAlias, Union

import msgspec
from msgspec import Meta, Struct

from connmon.errors import ProtocolError
from connmon.protocol.values import LARGEST, Count

#: The first byte of a command, as in pysyncobj: an encoded Batch follows, or the name of a leader's term.
BATCH: Final = b"\x00"
NO_OP: Final = b"\x01"

#: Largest command: a batch with the largest report that the port takes.
COMMAND_BYTES: Final = 20 * 1024 * 1024
#: Largest piece of a checkpoint, and of a message that is cut.
PART_BYTES: Final = 256 * 1024
#: Largest message that is joined from parts, and largest checkpoint.
MESSAGE_BYTES: Final = 2 * COMMAND_BYTES
CHECKPOINT_BYTES: Final = 2**31

Index: TypeAlias = Annotated[int, Meta(ge=1, le=LARGEST)]
Check: TypeAlias = Annotated[int, Meta(ge=0, le=2**32 - 1)]
Command: TypeAlias = Annotated[bytes, Meta(min_length=1, max_length=COMMAND_BYTES)]


def check(command: bytes) -> int:
    """Return the checksum of a command."""
    return zlib.crc32(command)


class AppendEntry(Struct, frozen=True, array_like=True, gc=False):
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
    """The answer to Ask of a node that would. Refusals are not sent."""

    round: Count


class RequestVote(Struct, frozen=True, array_like=True, tag="request_vote"):
    """A candidate asks for a vote in its term."""

    term: Count
    last_term: Count
    last: Index


class Vote(Struct, frozen=True, array_like=True, tag="vote"):
    """A granted vote. Refusals are not sent."""

    term: Count


class Append(Struct, frozen=True, array_like=True, tag="append"):
    """A leader's heartbeat, and its entries after one that the follower must have."""

    term: Count
    commit: Count
    last: Index
    """The leader's last entry. It has all that was ever committed: Raft's leader completeness."""
    previous: Index
    previous_term: Count
    previous_check: Check
    entries: tuple[AppendEntry, ...] = ()


class Install(Struct, frozen=True, array_like=True, tag="install"):
    """A piece of the checkpoint at entry `index`, for a follower that lacks entries cut off the log."""

    term: Count
    last: Index
    index: Index
    index_term: Count
    index_command: Command
    size: Annotated[int, Meta(ge=0, le=CHECKPOINT_BYTES)]
    """Bytes of the whole encoded state."""
    offset: Count
    data: Annotated[bytes, Meta(max_length=PART_BYTES)]


class Matched(Struct, frozen=True, array_like=True, tag="matched"):
    """The follower's answer: `next` is the index to go on with."""

    term: Count
    """The answered leader's; an answer to an earlier term says nothing about this one."""
    next: Index
    reset: bool
    """What was sent does not fit: go back to `next`."""
    success: bool
    """All before `next` is as the leader has it."""


class Stale(Struct, frozen=True, array_like=True, tag="stale"):
    """The answer to a leader or candidate of an earlier term: there is a later one."""

    term: Count


class Propose(Struct, frozen=True, array_like=True, tag="propose"):
    """A follower's command, for the leader to put into the log."""

    request: Count
    command: Command


class Proposed(Struct, frozen=True, array_like=True, tag="proposed"):
    """The answer: the entry that holds it, or the `error` of pysyncobj."""

    request: Count
    error: Count | None = None
    index: Count = 0
    term: Count = 0


class TimeoutNow(Struct, frozen=True, array_like=True, tag="timeout_now"):
    """The leader ends: stand for election at once (Ongaro's thesis, 3.10)."""

    term: Count


class Part(Struct, frozen=True, array_like=True, tag="part"):
    """A piece of a longer message."""

    data: Annotated[bytes, Meta(max_length=PART_BYTES)]
    more: bool


Message: TypeAlias = Union[
    Ask, Would, RequestVote, Vote, Append, Install, Matched, Stale, Propose, Proposed, TimeoutNow
]
Framed: TypeAlias = Union[
    Ping, Part, Ask, Would, RequestVote, Vote, Append, Install, Matched, Stale, Propose, Proposed, TimeoutNow
]
"""What a frame between nodes may contain."""

_encoder: Final = msgspec.msgpack.Encoder()
_decoder: Final[msgspec.msgpack.Decoder[Any]] = msgspec.msgpack.Decoder(Message)


class Carrier(Protocol):
    """Takes messages to the other nodes. Never blocks."""

    def send(self, name: str, message: Message) -> bool:
        """Send; False: there is no link to that node now."""

    def room(self, name: str) -> bool:
        """Whether the link takes more than heartbeats now. `RaftGroup.roomy` is called when it does again."""


def check_commands(message: Message) -> None:
    """Raise ProtocolError if a command in it is of a kind that this group does not have."""
    if isinstance(message, Propose) and message.command[:1] != BATCH:
        raise ProtocolError("a command that is no batch")
    if isinstance(message, Append) and any(e.command[:1] not in (BATCH, NO_OP) for e in message.entries):
        raise ProtocolError("an entry that is neither a batch nor a no-op")


def encode(message: Message) -> bytes:
    return _encoder.encode(message)


def decode(data: bytes | bytearray) -> Message:
    """Return the message. Raises ProtocolError if it is not valid."""
    try:
        return _decoder.decode(data)  # type: ignore[no-any-return]
    except (msgspec.MsgspecError, ValueError, RecursionError) as error:
        raise ProtocolError(f"a message of another node that cannot be read: {error}") from None


def cut(message: Message) -> list[Message | Part]:
    """Return what to send for a message: itself, or its parts."""
    size = 0
    if isinstance(message, Append):
        size = sum(len(entry.command) for entry in message.entries)
    elif isinstance(message, Propose):
        size = len(message.command)
    elif isinstance(message, Install):
        size = len(message.index_command)  # the data is short enough by itself
    if size <= PART_BYTES:
        return [message]
    data = memoryview(encode(message))
    return [
        Part(bytes(data[at : at + PART_BYTES]), at + PART_BYTES < len(data))
        for at in range(0, len(data), PART_BYTES)
    ]


class Joiner:
    """Joins parts."""

    def __init__(self, limit_bytes: int = MESSAGE_BYTES) -> None:
        self._limit_bytes = limit_bytes
        self._buffer = bytearray()

    def add(self, part: Part) -> Message | None:
        """Return the message that is complete with this part. Raises ProtocolError."""
        if len(self._buffer) + len(part.data) > self._limit_bytes:
            raise ProtocolError(f"a message of another node of more than {self._limit_bytes} bytes")
        self._buffer += part.data
        if part.more:
            return None
        data, self._buffer = self._buffer, bytearray()
        return decode(data)
