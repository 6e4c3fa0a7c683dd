"""What is reported of a process: no secret of its command line, and no error whatever psutil does."""

from __future__ import annotations

import os
import socket
from pathlib import Path

import msgspec
import psutil
import pytest
from hypothesis import given
from hypothesis import strategies as st

from connmon import process_info
from connmon.process_info import masked
from connmon.protocol.reports import Process, Usage

# --- Masking --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("command", "shown"),
    [
        (["nova-api", "--config-file", "/etc/nova.conf"], "nova-api --config-file /etc/nova.conf"),
        (["x", "mysql+pymysql://root:sa@db/nova"], "x mysql+pymysql://root:***@db/nova"),
        (["x", "mysql://u:p@ss:w/o?rd#@db/x"], "x mysql://u:***@db/x"),
        (["x", "redis://:pw@cache/0"], "x redis://:***@cache/0"),
        (["x", "mysql://u@db/x?password=sa&ssl_key=k"], "x mysql://u@db/x?***"),
        (["x", "http://db:8080/path"], "x http://db:8080/path"),
        (["x", "--url=mysql://u:p@db/x"], "x --url=mysql://u:***@db/x"),
        (["x", "a=mysql://u:p@db/x,b=mysql://v:q@db/y"], "x a=mysql://u:***@db/y"),
        (["x", "--password", "sa", "-v"], "x --password *** -v"),
        (["x", "--db.password", "sa"], "x --db.password ***"),
        (["x", "--password=sa"], "x --password=***"),
        (["x", "--password=my secret pass"], "x --password=***"),
        (["x", "--no-password", "--verbose"], "x --no-password --verbose"),
        (["x", "--pass", "sa", "--passphrase", "q"], "x --pass *** --passphrase ***"),
        (["x", "--API-Key", "k", "--access-key=k"], "x --API-Key *** --access-key=***"),
        (["env", "PGPASSWORD=sa", "MYSQL_PWD=sa", "AUTH_TOKEN=t"],
         "env PGPASSWORD=*** MYSQL_PWD=*** AUTH_TOKEN=***"),
        (["python", "-c", "connect(password='my pass')"], "python -c connect(password=***"),
        (["x", '{"password": "sa"}'], 'x {"password":***'),
        (["x", "--keyspace", "k", "--monkey", "m", "--bypass", "b"],
         "x --keyspace k --monkey m --bypass b"),
        ([], ""),
        (["a\udcffb"], "a?b"),
    ],
)  # fmt: skip
def test_masked(command: list[str], shown: str) -> None:
    """Passwords and query options are masked; what is not secret stays."""
    assert masked(command) == shown


_secrets = st.text("abcXYZ019@:/?#%&=!$*+,;", min_size=1, max_size=20).map(lambda s: f"S3cr{s}eT")
_names = st.sampled_from(["password", "PASSWD", "db-password", "client_secret", "auth.token", "api-key"])


@given(
    secret=_secrets,
    name=_names,
    form=st.sampled_from(
        [
            ["mysql+pymysql://root:{s}@db:3306/nova"],
            ["--connection=postgresql://u:{s}@h/x?ssl=1"],
            ["x?y", "mysql://h/x?connmon_secret={s}&b=1"],
            ["--{n}={s}"],
            ["--{n}", "{s}"],
            ["{n}={s}"],
            ["{n}: {s}"],
            ["-o", "--{n}={s} and more"],
        ]
    ),
    before=st.lists(st.text("abc-=:/ ", max_size=5), max_size=3),
)
def test_no_secret_is_shown(secret: str, name: str, form: list[str], before: list[str]) -> None:
    """However it is passed."""
    command = [*before, "x", *(word.format(s=secret, n=name) for word in form)]
    assert "S3cr" not in masked(command)
    assert "eT" not in masked(command)


@given(st.lists(st.text(st.characters(), max_size=50), max_size=10))
def test_any_command_line_can_be_sent(command: list[str]) -> None:
    """Any command line can be sent, once masked."""
    shown = masked(command)
    process = Process("h", "p", 1, 0, None, shown, None)
    assert msgspec.msgpack.decode(msgspec.msgpack.encode(process), type=Process) == process


@pytest.mark.parametrize("word", ["A", "token", "://", "-", "a:", "password ", "://a", "key", "://u:"])
def test_long_arguments(word: str) -> None:
    """An argument of the largest size is masked in a moment; a longer search would stop all threads."""
    shown = masked(["x", "--" + word * (130_000 // len(word)), word * (130_000 // len(word))])
    assert len(shown) <= 2048


# --- Process and usage ----------------------------------------------------------------------


def test_identity() -> None:
    """This process: its ids, its user, its command line and its age."""
    process = process_info.identity("ctl1", "nova-api")
    assert (process.host, process.program) == ("ctl1", "nova-api")
    assert (process.pid, process.ppid) == (os.getpid(), os.getppid())
    assert process.user
    assert process.command
    assert process.started is not None
    assert 0.0 <= process.started < 86400.0


def test_usage(monkeypatch: pytest.MonkeyPatch) -> None:
    """CPU is not known at the first measurement, which has none before it; then it is a number."""
    monkeypatch.setattr(process_info, "_cached", None)
    process_info.identity("h", "p")
    first = process_info.usage()
    assert first.cpu_percent is None
    assert first.rss_bytes
    assert first.threads
    assert first.open_files
    second = process_info.usage()
    assert second.cpu_percent is not None
    assert second.cpu_percent >= 0.0


@pytest.mark.parametrize(
    "error",
    [
        psutil.NoSuchProcess(1),
        psutil.AccessDenied(),
        OSError("no /proc"),
        RuntimeError("line 'btime' not found in /proc/stat"),
        AttributeError("num_fds"),
        IndexError(),
        UnicodeDecodeError("utf-8", b"", 0, 1, ""),
    ],
    ids=lambda error: type(error).__name__,
)
@pytest.mark.parametrize("where", ["process", "methods"])
def test_psutil_fails(where: str, error: Exception, monkeypatch: pytest.MonkeyPatch) -> None:
    """What cannot be read is None, and nothing is raised."""

    def fail(*_: object, **__: object) -> None:
        raise error

    monkeypatch.setattr(process_info, "_cached", None)
    if where == "process":
        monkeypatch.setattr(psutil, "Process", fail)
    else:
        for name in ("username", "cmdline", "create_time", "cpu_percent", "memory_info", "num_threads",
                     "num_fds"):  # fmt: skip
            monkeypatch.setattr(psutil.Process, name, fail)
    process = process_info.identity("h", "p")
    assert process == Process("h", "p", os.getpid(), os.getppid(), None, None, None)
    assert process_info.usage() == Usage()
    assert process_info.usage() == Usage()
    monkeypatch.undo()
    process_info._cached = None


def test_after_a_fork_it_is_the_child(monkeypatch: pytest.MonkeyPatch) -> None:
    """What was kept of the parent is not used."""
    process_info.usage()
    stale = process_info._cached
    monkeypatch.setattr(os, "getpid", lambda: os.getppid())
    assert process_info._self() is not stale


@pytest.mark.parametrize(("name", "expected"), [("ctl1", "ctl1"), ("", "localhost"), ("h" * 999, "h" * 256)])
def test_host(name: str, expected: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A host has a name, at most as long as the wire accepts."""
    monkeypatch.setattr(socket, "gethostname", lambda: name)
    assert process_info.host() == expected


# --- Containers -----------------------------------------------------------------------------

_ID = "9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08"
_SANDBOX = "60303ae22b998861bce3b28f33eec1be758a213c86c93c076dbe9f558c11c752"


@pytest.mark.parametrize(
    ("cgroup", "mountinfo", "found"),
    [
        (f"12:pids:/docker/{_ID}\n0::/system.slice", "", _ID),
        (f"0::/system.slice/docker-{_ID}.scope\n", "", _ID),
        (f"0::/machine.slice/libpod-{_ID}.scope/container\n", "", _ID),
        (f"0::/kubepods.slice/kubepods-podb7c5_1.slice/cri-containerd-{_ID}.scope\n", "", _ID),
        (f"1:name=systemd:/kubepods/besteffort/pod0b7c51d2-83e4/{_ID}\n", "", _ID),
        # Docker and Podman with a namespace of control groups, which is what they do by default now.
        ("0::/\n", f"612 590 254:1 /var/lib/docker/containers/{_ID}/hostname /etc/hostname rw - ext4", _ID),
        ("0::/\n", f"7 5 0:1 /containers/overlay-containers/{_ID}/userdata/hosts /etc/hosts rw - tmpfs", _ID),
        ("0::/\n", f"7 5 8:1 /var/lib/containerd/io.cri/sandboxes/{_SANDBOX}/resolv.conf /etc/resolv.conf rw",
         _SANDBOX),
        # The host of containers, and a checkout with a long hash in its name.
        ("0::/init.scope\n", f"99 1 8:1 /x /var/lib/docker/containers/{_ID}/mounts/shm rw - tmpfs", None),
        (f"0::/user.slice/build-{_ID}{_ID}.scope\n", "", None),
        ("0::/lxc.payload.web1/system.slice/nova.service\n", "", "web1"),
        ("4:memory:/lxc/db-2\n", "", "db-2"),
        ("0::/system.slice/nova-api.service\n", "23 1 8:1 / / rw - ext4 /dev/sda1", None),
        ("", "", None),
    ],
)  # fmt: skip
def test_container(cgroup: str, mountinfo: str, found: str | None, tmp_path: Path) -> None:
    """The container's id, wherever its engine shows it; None on a host that runs containers."""
    (tmp_path / "cgroup").write_text(cgroup)
    (tmp_path / "mountinfo").write_text(mountinfo)
    assert process_info.container(str(tmp_path)) == found
    assert process_info.identity("h", "p", str(tmp_path)).container == found


def test_no_container_where_there_is_no_proc(tmp_path: Path) -> None:
    """Where nothing can be read, the container is None."""
    assert process_info.container(str(tmp_path / "missing")) is None
