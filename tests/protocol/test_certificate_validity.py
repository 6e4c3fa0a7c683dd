"""The dates of certificates, compared with the `cryptography` package, and of random bytes."""

from __future__ import annotations

import base64
import math
from pathlib import Path

import pytest
from cryptography import x509
from hypothesis import given
from hypothesis import strategies as st

from connmon.protocol.certificate_validity import Validity, judge, validities
from tests.support.certificates import Authority

DAY = 86400.0


@pytest.mark.parametrize(
    ("begins", "days"), [(-30.0, 90.0), (-3.0, -1.0), (1.0, 9000.0), (-20000.0, 20000.0)]
)
def test_dates_are_those_of_the_certificate(begins: float, days: float, tmp_path: Path) -> None:
    """Both forms of a date (to 2049, and from 2050) are read, for each certificate of the file."""
    authority = Authority(tmp_path)
    files = authority.sign("node", "localhost", begins=begins, days=days)
    text = files.certificate.read_text() + files.key.read_text() + authority.file.read_text()
    expected = [
        Validity(each.not_valid_before_utc.timestamp(), each.not_valid_after_utc.timestamp())
        for each in x509.load_pem_x509_certificates(text.encode())
    ]
    assert validities(text) == expected


@given(st.binary(max_size=200))
def test_what_is_no_certificate_has_no_dates(data: bytes) -> None:
    """Other text between the lines of a certificate has no dates and raises nothing."""
    text = base64.b64encode(data).decode()
    for body in (text, data.decode("latin-1")):
        for found in validities(f"-----BEGIN CERTIFICATE-----\n{body}\n-----END CERTIFICATE-----\n"):
            assert math.isfinite(found.begin) and math.isfinite(found.end)


@given(st.integers(min_value=0, max_value=10_000), st.integers(min_value=0, max_value=255))
def test_a_damaged_certificate_raises_nothing(position: int, value: int) -> None:
    """A changed byte gives other dates, or none."""
    body = bytearray(DER)
    body[position % len(body)] = value
    text = base64.b64encode(body).decode()
    validities(f"-----BEGIN CERTIFICATE-----\n{text}\n-----END CERTIFICATE-----\n")


def _der() -> bytes:
    import tempfile

    from cryptography.hazmat.primitives.serialization import Encoding

    with tempfile.TemporaryDirectory() as directory:
        file = Authority(Path(directory)).file.read_bytes()
    return x509.load_pem_x509_certificate(file).public_bytes(Encoding.DER)


DER = _der()


def test_judgement() -> None:
    """A chain is as valid as its worst certificate; of authorities one must be valid."""
    good, past, future = Validity(0.0, 100 * DAY), Validity(0.0, 9 * DAY), Validity(20 * DAY, 200 * DAY)
    now = 10.5 * DAY
    assert judge([good], now).expires == "expires on 1970-04-11 00:00 UTC (in 89 days)"
    assert judge([good, past], now).problem == "expired on 1970-01-10 00:00 UTC (1 day ago)"
    assert judge([good, past], now, all_needed=False).problem == ""
    assert judge([past, past], now, all_needed=False).problem.startswith("expired on")
    assert (
        judge([future], now).problem
        == "is not valid before 1970-01-21 00:00 UTC (in 9 days); is the clock right?"
    )
    assert [judge([good], at * DAY).soon for at in (69.0, 71.0)] == [False, True]
    assert judge([], now) == ("", "", False)
