"""Read from a PEM file when its certificates are valid. Pure: text and a time in, words out.

Python's ssl module gives the dates of authorities and of the other side's certificate only, so they are read
from the certificate itself: RFC 5280, section 4.1 (the order of the fields) and 4.1.2.5 (the form of dates);
DER as in X.690. OpenSSL has accepted the file before. A certificate that cannot be read here is left out.

Not the package cryptography: 40 lines here read two dates; it is a compiled dependency of 16 MB.
"""

from __future__ import annotations

import base64
import binascii
import re
from datetime import datetime, timedelta, timezone
from typing import Final, NamedTuple

#: A certificate that expires sooner causes a warning.
SOON_DAYS: Final = 30

_PEM: Final = re.compile(
    r"-----BEGIN (?:X509 )?CERTIFICATE-----(.*?)-----END (?:X509 )?CERTIFICATE-----", re.S
)
_SEQUENCE, _UTC_TIME, _GENERALIZED_TIME, _VERSION = 0x30, 0x17, 0x18, 0xA0


class Validity(NamedTuple):
    """One certificate's dates, in seconds since the epoch."""

    begin: float
    end: float


class Judgement(NamedTuple):
    """The validity of a file's certificates at one time."""

    problem: str
    """Why the file cannot be used; "" if it can."""
    expires: str
    """When the first of them expires; "" if not known."""
    soon: bool
    """Whether that is in fewer than `SOON_DAYS` days."""


def validities(pem: str) -> list[Validity]:
    """Return the dates of the certificates in the text, in their order; unreadable ones are left out."""
    dates = []
    for match in _PEM.finditer(pem):
        try:
            dates.append(_validity(base64.b64decode(match[1])))
        except (ValueError, IndexError, binascii.Error):
            continue
    return dates


def judge(dates: list[Validity], now: float, all_needed: bool = True) -> Judgement:
    """Return the validity of a file's certificates at `now`, in seconds since the epoch.

    `all_needed`: they are a certificate and its chain, all of which must be valid; else authorities, one of
    which must be.
    """
    if not dates:
        return Judgement("", "", False)
    past = [validity.end for validity in dates if validity.end < now]
    future = [validity.begin for validity in dates if validity.begin > now]
    bad = len([validity for validity in dates if not validity.begin <= now <= validity.end])
    if bad and (all_needed or bad == len(dates)):
        if past:
            return Judgement(f"expired on {_date(min(past))} ({_days(now - min(past))} ago)", "", False)
        begin = max(future)
        return Judgement(
            f"is not valid before {_date(begin)} (in {_days(begin - now)}); is the clock right?", "", False
        )
    end = min(validity.end for validity in dates if validity.end >= now)
    left = timedelta(seconds=end - now)
    return Judgement("", f"expires on {_date(end)} (in {_days(end - now)})", left < timedelta(days=SOON_DAYS))


def _date(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, timezone.utc).strftime("%Y-%m-%d %H:%M UTC")


def _days(seconds: float) -> str:
    days = timedelta(seconds=seconds).days
    return f"{days} day{'' if days == 1 else 's'}" if days else "less than a day"


def _validity(der: bytes) -> Validity:
    """Return a certificate's dates. Raises ValueError or IndexError if it cannot be read."""
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
    """Return tag and content of the element at an offset, and the offset of the next one."""
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
