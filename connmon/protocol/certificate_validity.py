"""From when to when the certificates of a PEM file are valid. Pure: text and a time in, words out.

Python's ssl module gives the dates of authorities and of the other side's certificate only, so the two
dates are read here from the certificate itself: RFC 5280, section 4.1 (the order of the fields) and
4.1.2.5 (how dates are written); DER as in X.690. OpenSSL has accepted the file before: what cannot be read
here is left out, never guessed.
"""

from __future__ import annotations

import base64
import binascii
import re
from datetime import datetime, timezone
from typing import Final, NamedTuple

#: Days before the end of a certificate from which on it is worth a warning.
SOON_DAYS: Final = 30

_DAY: Final = 86400.0
_PEM: Final = re.compile(
    r"-----BEGIN (?:X509 )?CERTIFICATE-----(.*?)-----END (?:X509 )?CERTIFICATE-----", re.S
)
_SEQUENCE, _UTC_TIME, _GENERALIZED_TIME, _VERSION = 0x30, 0x17, 0x18, 0xA0


class Validity(NamedTuple):
    """One certificate's dates, in seconds since the epoch."""

    begin: float
    end: float


class Judgement(NamedTuple):
    """What the dates of a file's certificates mean at one moment."""

    problem: str
    """Why the file cannot be used now; "": it can."""
    expires: str
    """When the first of them expires; "": not known."""
    soon: bool
    """That is in fewer than `SOON_DAYS` days."""


def validities(pem: str) -> list[Validity]:
    """Return the dates of each certificate in the text, in its order; those that can be read."""
    found = []
    for match in _PEM.finditer(pem):
        try:
            found.append(_validity(base64.b64decode(match[1])))
        except (ValueError, IndexError, binascii.Error):
            continue
    return found


def judge(found: list[Validity], now: float, all_needed: bool = True) -> Judgement:
    """Return what it means at `now` (seconds since the epoch) that these are a file's certificates.

    `all_needed`: a certificate and its chain, each of which has to be valid; else authorities, of which one
    has to be.
    """
    if not found:
        return Judgement("", "", False)
    past = [each.end for each in found if each.end < now]
    future = [each.begin for each in found if each.begin > now]
    bad = len([each for each in found if not each.begin <= now <= each.end])
    if bad and (all_needed or bad == len(found)):
        if past:
            return Judgement(f"expired on {_date(min(past))} ({_days(now - min(past))} ago)", "", False)
        begin = max(future)
        return Judgement(
            f"is not valid before {_date(begin)} (in {_days(begin - now)}); is the clock right?", "", False
        )
    end = min(each.end for each in found if each.end >= now)
    return Judgement("", f"expires on {_date(end)} (in {_days(end - now)})", end - now < SOON_DAYS * _DAY)


def _date(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, timezone.utc).strftime("%Y-%m-%d %H:%M UTC")


def _days(seconds: float) -> str:
    days = int(seconds // _DAY)
    return f"{days} day{'' if days == 1 else 's'}" if days else "less than a day"


def _validity(der: bytes) -> Validity:
    """Raises ValueError or IndexError where this is no certificate."""
    _, certificate, _ = _element(der, 0, _SEQUENCE)
    _, signed, _ = _element(certificate, 0, _SEQUENCE)
    at = 0
    tag, _, after = _element(signed, at)
    if tag == _VERSION:
        at = after
    for _ in range(3):  # serial number, signature's algorithm, issuer
        _, _, at = _element(signed, at)
    _, dates, _ = _element(signed, at, _SEQUENCE)
    tag, begin, at = _element(dates, 0)
    begin_at = _time(tag, begin)
    tag, end, _ = _element(dates, at)
    return Validity(begin_at, _time(tag, end))


def _element(data: bytes, at: int, expected: int | None = None) -> tuple[int, bytes, int]:
    """Return tag and contents of the element that begins there, and where the next one begins."""
    tag, length = data[at], data[at + 1]
    at += 2
    if length & 0x80:
        size = length & 0x7F
        if not 1 <= size <= 4:
            raise ValueError("a length that no certificate has")
        length = int.from_bytes(data[at : at + size], "big")
        at += size
    if at + length > len(data) or (expected is not None and tag != expected):
        raise ValueError("not the element that was expected")
    return tag, data[at : at + length], at + length


def _time(tag: int, data: bytes) -> float:
    text = data.decode("ascii")
    if tag == _UTC_TIME:  # two digits: 1950 to 2049
        text = ("20" if text[:2] < "50" else "19") + text
    elif tag != _GENERALIZED_TIME:
        raise ValueError("not a date")
    return datetime.strptime(text, "%Y%m%d%H%M%SZ").replace(tzinfo=timezone.utc).timestamp()
