"""TLS without sockets: which certificates are accepted, and the errors on both sides."""

from __future__ import annotations

import ssl
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from connmon.config import Service, direct
from connmon.errors import ProtocolError
from connmon.protocol.credentials import of_client, of_node
from connmon.protocol.tls import Channel
from tests.support.certificates import Authority, Files

HELLO = b"hello from the client"


def closed(files: Files | None, authority: Authority | None) -> Service:
    return replace(
        direct("localhost"),
        ssl_certfile=str(files.certificate) if files else None,
        ssl_keyfile=str(files.key) if files else None,
        ssl_cafile=str(authority.file) if authority else None,
    )


def node(service: Service) -> Channel:
    context = of_node(service).tls
    assert context is not None
    return Channel(context, None)


def client(
    service: Service, host: str = "localhost", tune: Callable[[ssl.SSLContext], None] | None = None
) -> Channel:
    context = of_client(service).tls
    assert context is not None
    if tune:
        tune(context)
    return Channel(context, host)


def talk(one: Channel, other: Channel) -> tuple[bytes, str, str]:
    """Connect client and node; return the bytes that the node gets, and the errors of both."""
    one.send(HELLO)
    got, wrong = b"", ["", ""]
    for _ in range(10):
        for number, (sender, receiver) in enumerate(((one, other), (other, one))):
            data = sender.outgoing()
            if data and not wrong[1 - number]:
                try:
                    read = receiver.receive(data)
                    got += b"" if number else read
                except ProtocolError as error:
                    wrong[1 - number] = str(error)
    return got, wrong[0], wrong[1]


def test_both_sides_with_certificates_of_one_authority(tmp_path: Path) -> None:
    """Data goes both ways, by the node's name and by its address."""
    authority = Authority(tmp_path)
    service = closed(authority.sign("node", "localhost", "127.0.0.1", "::1"), authority)
    for host in ("localhost", "localhost.", "127.0.0.1", "::1"):
        one, other = client(service, host), node(service)
        assert talk(one, other) == (HELLO, "", "")
        other.send(b"x" * 100_000)
        assert one.receive(other.outgoing()) == b"x" * 100_000
        assert one.pending == other.pending == 0


def test_a_node_that_wants_no_certificate(tmp_path: Path) -> None:
    """If the node has no ssl_cafile, a client needs only its authority."""
    authority = Authority(tmp_path)
    files = authority.sign("node", "localhost")
    assert talk(client(closed(None, authority)), node(closed(files, None))) == (HELLO, "", "")


def test_a_node_of_another_authority(tmp_path: Path) -> None:
    """The client stops before it sends data, and both sides report why."""
    mine, other = Authority(tmp_path), Authority(tmp_path, "other")
    got, at_client, at_node = talk(
        client(closed(mine.sign("client"), mine)), node(closed(other.sign("node", "localhost"), other))
    )
    assert got == b""
    assert at_client.startswith("the other side's certificate is not accepted: ")
    assert at_node.startswith("the other side does not accept this one's certificate")


def test_a_certificate_that_nobody_vouches_for(tmp_path: Path) -> None:
    """Without ssl_cafile the system's authorities count."""
    files = Authority(tmp_path).sign("node", "localhost")
    got, at_client, _ = talk(client(closed(files, None)), node(closed(files, None)))
    assert got == b"" and "certificate is not accepted" in at_client


def test_a_node_of_another_name(tmp_path: Path) -> None:
    """The certificate must name the host that the client connects to."""
    authority = Authority(tmp_path)
    service = closed(authority.sign("node", "localhost", "127.0.0.1"), authority)
    for host, said in (("node2.example", "node2.example"), ("127.0.0.2", "127.0.0.2")):
        got, at_client, _ = talk(client(service, host), node(service))
        assert got == b"" and "certificate is not accepted" in at_client and said in at_client


def test_an_expired_certificate(tmp_path: Path) -> None:
    """An expired certificate of either side is refused, and the other side learns it."""
    authority = Authority(tmp_path)
    old, good = authority.sign("old", "localhost", expired=True), authority.sign("good", "localhost")
    got, at_client, at_node = talk(client(closed(good, authority)), node(closed(old, authority)))
    assert got == b"" and "certificate has expired" in at_client and "it has expired" in at_node
    got, at_client, at_node = talk(client(closed(old, authority)), node(closed(good, authority)))
    assert got == b"" and "certificate has expired" in at_node and "it has expired" in at_client


@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
def test_a_client_without_a_certificate(tmp_path: Path, version: ssl.TLSVersion) -> None:
    """A node with ssl_cafile refuses a client without a certificate, and the client learns what it needs."""
    authority = Authority(tmp_path)

    def tune(context: ssl.SSLContext) -> None:
        context.maximum_version = version

    one = client(closed(None, authority), tune=tune)
    got, at_client, at_node = talk(one, node(closed(authority.sign("node", "localhost"), authority)))
    assert got == b""
    assert at_node.startswith("the client shows no certificate")
    assert "certificate" in at_client


def test_a_client_of_another_authority(tmp_path: Path) -> None:
    """A certificate must be signed by the right authority."""
    mine, other = Authority(tmp_path), Authority(tmp_path, "other")
    service = closed(mine.sign("node", "localhost"), mine)
    stranger = replace(closed(other.sign("client"), mine))
    got, at_client, at_node = talk(client(stranger), node(service))
    assert got == b""
    assert "certificate is not accepted" in at_node and "ssl_cafile does not have who signed it" in at_client


@pytest.mark.filterwarnings("ignore:ssl.TLSVersion:DeprecationWarning")
def test_older_than_1_2(tmp_path: Path) -> None:
    """TLS 1.1 is refused, and both sides report why."""
    authority = Authority(tmp_path)
    service = closed(authority.sign("node", "localhost"), None)

    def tune(context: ssl.SSLContext) -> None:
        context.set_ciphers("ALL:@SECLEVEL=0")
        context.minimum_version = context.maximum_version = ssl.TLSVersion.TLSv1_1

    got, at_client, at_node = talk(client(closed(None, authority), tune=tune), node(service))
    assert got == b"" and "older than 1.2" in at_node and "older than 1.2" in at_client


def test_a_side_without_tls_is_noticed_at_its_first_byte(tmp_path: Path) -> None:
    """The first plain byte is noticed; the node can still send a plain refusal, and a client reports what is
    missing."""
    authority = Authority(tmp_path)
    service = closed(authority.sign("node", "localhost"), authority)
    one, other = client(service), node(service)
    with pytest.raises(ProtocolError, match="the client speaks no TLS and the node does"):
        other.receive(b"\0\0\0\x25\x95")
    assert other.plain and other.outgoing() == b""
    with pytest.raises(ProtocolError, match="the node speaks no TLS and the client does"):
        one.receive(b"\0\0\0\x25\x95")


@given(st.lists(st.binary(max_size=100), max_size=4), st.booleans(), st.booleans())
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=50, deadline=None)
def test_random_bytes_raise_nothing_but_protocol_errors(
    tmp_path: Path, chunks: list[bytes], begun: bool, record: bool
) -> None:
    """Garbage before, in and after the handshake is a ProtocolError or an incomplete record."""
    authority = Authority(tmp_path)
    service = closed(authority.sign("node", "localhost"), None)
    one, other = client(closed(None, authority)), node(service)
    if begun:
        assert talk(one, other) == (HELLO, "", "")
    for side in (one, other):
        try:
            for chunk in chunks:
                side.receive((b"\x16\x03\x03" if record else b"") + chunk)
                side.send(b"x")
                side.outgoing()
        except ProtocolError:
            side.send(b"x")
            side.outgoing()


def test_an_altered_record_is_noticed(tmp_path: Path) -> None:
    """A record with a wrong bit is not read."""
    authority = Authority(tmp_path)
    service = closed(authority.sign("node", "localhost"), None)
    one, other = client(closed(None, authority)), node(service)
    talk(one, other)
    one.send(HELLO)
    data = bytearray(one.outgoing())
    data[-1] ^= 1
    with pytest.raises(ProtocolError, match="TLS failed"):
        other.receive(bytes(data))


def test_a_host_that_no_certificate_can_name(tmp_path: Path) -> None:
    """A host name that no certificate can have is a ProtocolError of this one node."""
    context = of_client(closed(None, Authority(tmp_path))).tls
    assert context is not None
    with pytest.raises(ProtocolError, match="no certificate can be for this host name"):
        Channel(context, ".")
