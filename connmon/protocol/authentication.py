"""Compute proofs, keys and MACs from the service's secret, for both sides of a connection. Pure.

Rules (docs/protocol.rst, "With a secret"):

- All MACs are HMAC-SHA256. The client's proof, the client's frames and the node's frames each use
  their own key or purpose text, so neither side accepts its own bytes back.
- The proof and the keys depend on every byte of the hello and of the challenge: version, role, service
  and both nonces. They are valid for one connection, and only if both sides saw the same frames.
- A frame's MAC covers its payload and its number in its direction. A frame that was altered, dropped,
  repeated or moved fails the check.
- Secrets and keys never appear in a repr() or in an error.
"""

from __future__ import annotations

import hmac
from typing import Final

#: A nonce (random, new for each connection), a proof, and the MAC of a frame.
NONCE_BYTES: Final = 32
PROOF_BYTES: Final = 32
MAC_BYTES: Final = 16

_PROOF: Final = b"connmon client proof"
_FROM_CLIENT: Final = b"connmon client to node"
_FROM_NODE: Final = b"connmon node to client"


class FrameMacs:
    """The MACs of all frames of one direction, in order."""

    __slots__ = ("_keyed", "_number")

    def __init__(self, key: bytes) -> None:
        self._keyed = hmac.new(key, digestmod="sha256")  # copied for each frame: half the cost of a new one
        self._number = 0

    def next(self, payload: bytes) -> bytes:
        """Return the MAC of the next frame."""
        mac = self._keyed.copy()
        mac.update(self._number.to_bytes(8, "big"))
        mac.update(payload)
        self._number += 1
        return mac.digest()[:MAC_BYTES]

    def verify(self, mac: bytes, payload: bytes) -> bool:
        """Return whether this is the MAC of the next frame, which has this payload."""
        return hmac.compare_digest(mac, self.next(payload))


class Handshake:
    """Derive proof and MACs from a secret and the two frames exchanged: hello and challenge."""

    __slots__ = ("_secret", "_transcript")

    def __init__(self, secret: bytes, hello: bytes, challenge: bytes) -> None:
        """`hello` and `challenge` are whole frames as sent; their lengths separate them."""
        self._secret = secret
        self._transcript = hello + challenge

    def proof(self) -> bytes:
        """Return the client's proof."""
        return self._mac(_PROOF)

    def verify_proof(self, proof: bytes) -> bool:
        """Return whether this is the client's proof."""
        return hmac.compare_digest(proof, self.proof())

    def client_macs(self) -> FrameMacs:
        """Return the MACs of the client's frames."""
        return FrameMacs(self._mac(_FROM_CLIENT))

    def node_macs(self) -> FrameMacs:
        """Return the MACs of the node's frames, the welcome first."""
        return FrameMacs(self._mac(_FROM_NODE))

    def _mac(self, purpose: bytes) -> bytes:
        return hmac.digest(self._secret, purpose + b"\0" + self._transcript, "sha256")
