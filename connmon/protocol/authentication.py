"""What both sides of a connection compute from the service's secret: proofs, keys, seals. Pure.

The rules it keeps (docs/protocol.rst, "With a secret"):

- HMAC-SHA256 throughout. What it is keyed with, and a text that says what it is for, are different
  for the client's proof, for what the client sends and for what the node sends: nothing that one
  side has sent can be given back to it as the other's.
- The proof and the keys are made of the two frames that were exchanged before them, byte by byte:
  version, role, service and both sides' nonces. So they are good for this one connection, and only
  where both sides saw the same.
- A seal is made of the number of the frame in its direction and of its payload: a frame that was
  altered, left out, repeated or moved does not have it.
- A secret and a key are in no repr() and in no error.
"""

from __future__ import annotations

import hmac
from typing import Final

#: Bytes of a side's nonce (random, new for each connection), of a proof, and of a seal.
NONCE_BYTES: Final = 32
PROOF_BYTES: Final = 32
SEAL_BYTES: Final = 16

_PROOF: Final = b"connmon client proof"
_FROM_CLIENT: Final = b"connmon client to node"
_FROM_NODE: Final = b"connmon node to client"


class Seals:
    """The seals of the frames that go one way, in their order."""

    __slots__ = ("_count", "_key")

    def __init__(self, key: bytes) -> None:
        self._key = hmac.new(key, digestmod="sha256")  # copied for each frame: half the cost of a new one
        self._count = 0

    def next(self, payload: bytes) -> bytes:
        """Return the seal of the next frame."""
        mac = self._key.copy()
        mac.update(self._count.to_bytes(8, "big"))
        mac.update(payload)
        self._count += 1
        return mac.digest()[:SEAL_BYTES]

    def fits(self, seal: bytes, payload: bytes) -> bool:
        """Return whether the next frame, with this payload, has this seal."""
        return hmac.compare_digest(seal, self.next(payload))


class Handshake:
    """What follows from a secret and the two frames exchanged: the client's hello, the node's challenge."""

    __slots__ = ("_secret", "_transcript")

    def __init__(self, secret: bytes, hello: bytes, challenge: bytes) -> None:
        """Take both as they were sent, whole frames: their lengths keep them apart."""
        self._secret = secret
        self._transcript = hello + challenge

    def proof(self) -> bytes:
        """Return the client's proof."""
        return self._mac(_PROOF)

    def proven(self, proof: bytes) -> bool:
        """Return whether this is the client's proof."""
        return hmac.compare_digest(proof, self.proof())

    def from_client(self) -> Seals:
        return Seals(self._mac(_FROM_CLIENT))

    def from_node(self) -> Seals:
        return Seals(self._mac(_FROM_NODE))

    def _mac(self, purpose: bytes) -> bytes:
        return hmac.digest(self._secret, purpose + b"\0" + self._transcript, "sha256")
