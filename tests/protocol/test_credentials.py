"""Secrets and certificates from files: what is refused, with which error."""

from __future__ import annotations

import os
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from connmon.config import Service, direct, load
from connmon.errors import ConfigError
from connmon.protocol.credentials import OPEN, Credentials, of_client, of_node, read_secret
from tests.support.certificates import Authority

SECRET = "0123456789abcdef-hush"


def closed(**options: Any) -> Service:
    return replace(direct("127.0.0.1:5800"), **options)


def secret_file(tmp_path: Path, content: bytes = SECRET.encode(), mode: int = 0o600) -> str:
    path = tmp_path / "secret"
    path.write_bytes(content)
    path.chmod(mode)
    return str(path)


def config_file(tmp_path: Path, more: str, mode: int = 0o600) -> Service:
    path = tmp_path / "connmon.cfg"
    path.write_text(f"[connmon_service_a]\nname: a\nnodes:\n    n hostname=h\n{more}\n")
    path.chmod(mode)
    return load(str(path), {}).service("a")


def problem(service: Service, node: bool = False) -> str:
    """Return the error, one line without the secret."""
    with pytest.raises(ConfigError) as caught:
        of_node(service) if node else of_client(service)
    text = str(caught.value)
    assert "\n" not in text and "hush" not in text
    return text


def test_neither_secret_nor_tls() -> None:
    """A service without either is open."""
    assert of_client(closed()) == of_node(closed()) == OPEN
    assert not OPEN.any


@pytest.mark.parametrize("end", [b"", b"\n", b"\r\n", b" \t\n\n"])
def test_white_space_at_the_end_of_a_secret_file_does_not_count(tmp_path: Path, end: bytes) -> None:
    """White space at the end of a secret_file does not count."""
    assert read_secret(closed(secret_file=secret_file(tmp_path, SECRET.encode() + end))) == SECRET.encode()


def test_a_secret_in_the_config_file_is_the_same(tmp_path: Path) -> None:
    """secret and secret_file mean the same."""
    assert read_secret(config_file(tmp_path, f"secret: {SECRET}")) == SECRET.encode()


@pytest.mark.parametrize("mode", [0o600, 0o400, 0o640, 0o660])
def test_owner_and_group_may_read_it(tmp_path: Path, mode: int) -> None:
    """A group may read the file: several programs share it that way."""
    assert read_secret(closed(secret_file=secret_file(tmp_path, mode=mode)))
    assert read_secret(config_file(tmp_path, f"secret: {SECRET}", mode))


@pytest.mark.parametrize("mode", [0o644, 0o604, 0o602, 0o666])
def test_a_secret_that_others_have_access_to_is_refused(tmp_path: Path, mode: int) -> None:
    """A secret file or config file that others can read is refused; the line says what to do."""
    said = problem(closed(secret_file=secret_file(tmp_path, mode=mode)))
    assert said.startswith(f"secret_file: {tmp_path}/secret: others have access to it (mode {mode:04o})")
    assert f"chmod o= {tmp_path}/secret" in said
    said = problem(config_file(tmp_path, f"secret: {SECRET}", mode))
    assert said.startswith(f"{tmp_path}/connmon.cfg: [connmon_service_a] secret: others have access")
    assert f"chmod o= {tmp_path}/connmon.cfg" in said


def test_a_config_file_without_a_secret_may_be_read_by_all(tmp_path: Path) -> None:
    """Only a config file with a secret in it must be closed to others."""
    path = secret_file(tmp_path)
    assert read_secret(config_file(tmp_path, f"secret_file: {path}", 0o644)) == SECRET.encode()


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "is empty"),
        (b" \n", "is empty"),
        (b"hush", "is only 4 bytes; expected at least 16"),
        (b"hush" * 1025, "has more than 4096 bytes"),
    ],
)
def test_a_secret_that_is_none(tmp_path: Path, content: bytes, said: str) -> None:
    """A secret that is too short, or a file that is too long, is refused."""
    assert said in problem(closed(secret_file=secret_file(tmp_path, content)))


def test_a_short_secret_in_the_config_file(tmp_path: Path) -> None:
    """A short secret in the config file is refused too."""
    assert "[connmon_service_a] secret: is only 4 bytes" in problem(config_file(tmp_path, "secret: hush"))


def test_a_secret_file_that_is_no_file(tmp_path: Path) -> None:
    """A missing file, a directory, a pipe (which is not waited for) and an impossible name are refused."""
    assert "cannot be read: No such file" in problem(closed(secret_file=str(tmp_path / "x")))
    assert "is not a file" in problem(closed(secret_file=str(tmp_path)))
    os.mkfifo(tmp_path / "pipe", 0o600)
    assert "is not a file" in problem(closed(secret_file=str(tmp_path / "pipe")))
    # The rest of the line is the interpreter's: 3.13 says which call it was.
    assert re.search(r"cannot be read: (open: )?embedded null", problem(closed(secret_file="a\0b")))


def test_credentials_show_no_secret() -> None:
    """repr() of credentials does not show the secret."""
    assert "hush" not in repr(Credentials(SECRET.encode()))


# --- TLS ----------------------------------------------------------------------------------


def test_files_that_make_a_node(tmp_path: Path) -> None:
    """Certificate and key make TLS; with an authority, clients must show a certificate."""
    authority = Authority(tmp_path)
    certificate, key = map(str, authority.sign("node", "localhost"))
    node = of_node(closed(ssl_certfile=certificate, ssl_keyfile=key))
    assert node.any and node.tls is not None and node.tls.verify_mode == 0
    mutual = of_node(closed(ssl_certfile=certificate, ssl_keyfile=key, ssl_cafile=str(authority.file)))
    assert mutual.tls is not None and mutual.tls.verify_mode == 2


def test_a_client_needs_the_key_only_where_it_shows_a_certificate(tmp_path: Path) -> None:
    """Without ssl_cafile a client does not read the node's key, which not every client may."""
    authority = Authority(tmp_path)
    certificate, key = map(str, authority.sign("node", "localhost"))
    os.unlink(key)
    client = of_client(closed(ssl_certfile=certificate, ssl_keyfile=key))
    assert client.tls is not None and client.tls.check_hostname and client.tls.verify_mode == 2
    said = problem(closed(ssl_certfile=certificate, ssl_keyfile=key, ssl_cafile=str(authority.file)))
    assert said == f"ssl_keyfile: {key} cannot be read: No such file or directory"


def test_an_authority_alone_is_no_node(tmp_path: Path) -> None:
    """An authority alone is enough for a client and not for a node."""
    authority = str(Authority(tmp_path).file)
    assert of_client(closed(ssl_cafile=authority)).tls is not None
    assert "ssl_cafile: a node needs ssl_certfile" in problem(closed(ssl_cafile=authority), node=True)


def test_files_that_cannot_be_used(tmp_path: Path) -> None:
    """An unusable file is one line that names the option and the file."""
    authority = Authority(tmp_path)
    one, other = authority.sign("one", "h"), authority.sign("other", "h")
    locked = authority.sign("locked", "h", passphrase="hush")
    broken = tmp_path / "broken.pem"
    broken.write_text("-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n")
    for certificate, key, said in (
        (one.certificate, other.key, f"ssl_keyfile: {other.key} is not the key of the certificate in"),
        (one.certificate, tmp_path / "x", f"ssl_keyfile: {tmp_path}/x cannot be read: No such file"),
        (tmp_path / "x", one.key, f"ssl_certfile: {tmp_path}/x cannot be read: No such file"),
        (one.key, one.key, f"ssl_certfile: {one.key} has no '-----BEGIN ... CERTIFICATE-----'"),
        (one.certificate, one.certificate, f"ssl_keyfile: {one.certificate} has no '-----BEGIN ... PRIVATE"),
        (locked.certificate, locked.key, f"ssl_keyfile: {locked.key} has a passphrase"),
        (broken, one.key, f"ssl_certfile: {broken} and ssl_keyfile {one.key} cannot be used"),
        (tmp_path, one.key, f"ssl_certfile: {tmp_path} cannot be read: Is a directory"),
    ):
        assert said in problem(closed(ssl_certfile=str(certificate), ssl_keyfile=str(key)), node=True)
    said = problem(closed(ssl_cafile=str(broken)))
    assert f"ssl_cafile: {broken} cannot be used" in said
