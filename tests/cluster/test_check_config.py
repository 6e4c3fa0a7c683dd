"""`connmond --check-config` reports what would prevent a start, in the same words, and changes nothing."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import pytest

from connmon.cluster import daemon
from connmon.cluster.raft.log import Checkpoint
from connmon.cluster.raft.storage import DataDir
from connmon.cluster.state.machine import StateMachine
from connmon.cluster.writable import check_directory, check_file, check_parent
from tests.cluster.test_daemon import Connmond, free_port, ready, run, started, write
from tests.support.certificates import Authority

__all__ = ["started"]

NODE = "node1"


def tree(directory: Path) -> dict[str, bytes | None]:
    """Return all files and directories of a tree, with their content."""
    return {
        str(path.relative_to(directory)): path.read_bytes() if path.is_file() else None
        for path in directory.rglob("*")
    }


def checked(path: Path, *more: str) -> tuple[int, str, str]:
    """Return exit code, stdout and stderr of --check-config as a real process."""
    done = subprocess.run(
        [
            sys.executable, "-W", "error", "-m", "connmon.cluster.daemon",
            "--check-config", "-c", str(path), *more,
        ],
        capture_output=True, text=True, timeout=30,
    )  # fmt: skip
    return done.returncode, done.stdout, done.stderr


def kept(path: Path, service: str = "default", node: str = NODE, state: bytes | None = None) -> None:
    """Make a data_dir with a checkpoint and a short log."""
    directory = DataDir(str(path), service, node)
    for index in (1, 2):
        directory.journal.add(b"\1x", index, 1)
    directory.journal.setRaftCommitIndex(2)
    directory.save(Checkpoint(2, 1, b"\1x", StateMachine().encode() if state is None else state))
    directory.journal._destroy()
    directory.close()


def missing_data_dir(directory: Path) -> str:
    return f"data_dir: {directory}/missing/data\n"


def data_dir_is_a_file(directory: Path) -> str:
    (directory / "file").write_text("x")
    return f"data_dir: {directory}/file\n"


def data_dir_below_a_file(directory: Path) -> str:
    (directory / "file").write_text("x")
    return f"data_dir: {directory}/file/data\n"


def data_dir_with_other_files(directory: Path) -> str:
    (directory / "data").mkdir()
    (directory / "data" / "letter.txt").write_text("x")
    return f"data_dir: {directory}/data\n"


def data_dir_of_another_node(directory: Path) -> str:
    kept(directory / "data", node="node7")
    return f"data_dir: {directory}/data\n"


def data_dir_of_another_service(directory: Path) -> str:
    kept(directory / "data", service="other")
    return f"data_dir: {directory}/data\n"


def truncated_journal(directory: Path) -> str:
    kept(directory / "data")
    journal = directory / "data" / "journal"
    journal.write_bytes(journal.read_bytes()[:-3])
    return f"data_dir: {directory}/data\n"


def missing_journal(directory: Path) -> str:
    kept(directory / "data")
    (directory / "data" / "journal").unlink()
    return f"data_dir: {directory}/data\n"


def state_of_something_else(directory: Path) -> str:
    kept(directory / "data", state=b"state")
    return f"data_dir: {directory}/data\n"


def missing_dump_directory(directory: Path) -> str:
    return f"csv_dump: {directory}/missing/dump.csv\n"


def dump_is_a_directory(directory: Path) -> str:
    return f"csv_dump: {directory}\n"


def dump_is_a_pipe(directory: Path) -> str:
    os.mkfifo(directory / "pipe")
    return f"csv_dump: {directory}/pipe\n"


def open_secret_file(directory: Path) -> str:
    (directory / "secret").write_text("0123456789abcdef0123456789abcdef")
    (directory / "secret").chmod(0o644)
    return f"secret_file: {directory}/secret\n"


def expired_certificate(directory: Path) -> str:
    files = Authority(directory).sign("node", "localhost", expired=True)
    return f"ssl_certfile: {files.certificate}\nssl_keyfile: {files.key}\n"


def certificate_of_tomorrow(directory: Path) -> str:
    files = Authority(directory).sign("node", "localhost", begins=1.0)
    return f"ssl_certfile: {files.certificate}\nssl_keyfile: {files.key}\n"


def expired_authority(directory: Path) -> str:
    authority = Authority(directory, days=-1.0)
    files = authority.sign("node", "localhost")
    return f"ssl_certfile: {files.certificate}\nssl_keyfile: {files.key}\nssl_cafile: {authority.file}\n"


def key_of_another_certificate(directory: Path) -> str:
    authority = Authority(directory)
    files, other = authority.sign("node", "localhost"), authority.sign("other", "localhost")
    return f"ssl_certfile: {files.certificate}\nssl_keyfile: {other.key}\n"


def missing_authority(directory: Path) -> str:
    files = Authority(directory).sign("node", "localhost")
    return f"ssl_certfile: {files.certificate}\nssl_keyfile: {files.key}\nssl_cafile: {directory}/none.pem\n"


def foreign_metrics_address(directory: Path) -> str:
    return "metrics: 192.0.2.1:9000\n"


def log_file_in_a_missing_directory(directory: Path) -> str:
    return (
        "[loggers]\nkeys: root\n[handlers]\nkeys: file\n[formatters]\nkeys:\n"
        "[logger_root]\nlevel: INFO\nhandlers: file\n"
        f"[handler_file]\nclass: FileHandler\nargs: ({str(directory / 'missing' / 'log')!r},)\n"
    )


@pytest.mark.slow
@pytest.mark.parametrize(
    "fault",
    [
        missing_data_dir, data_dir_is_a_file, data_dir_below_a_file, data_dir_with_other_files,
        data_dir_of_another_node, data_dir_of_another_service, truncated_journal, missing_journal,
        state_of_something_else, missing_dump_directory, dump_is_a_directory, dump_is_a_pipe,
        open_secret_file, expired_certificate, certificate_of_tomorrow, expired_authority,
        key_of_another_certificate, missing_authority, foreign_metrics_address,
        log_file_in_a_missing_directory,
    ],
)  # fmt: skip
def test_what_ends_a_start_is_found(
    fault: Callable[[Path], str], started: list[Connmond], tmp_path: Path
) -> None:
    """--check-config and the start end with the same exit code and line; the check changes nothing."""
    path = write(tmp_path / "c.cfg", free_port(), fault(tmp_path))
    before = tree(tmp_path)
    code, out, line = checked(path)
    assert tree(tmp_path) == before
    assert code != 0 and "is right" not in out
    assert len(line.splitlines()) == 1
    node = run(started, "--config", str(path))
    assert (node.end(), node.stderr) == (code, line)


@pytest.mark.slow
def test_a_node_that_could_start_is_right(started: list[Connmond], tmp_path: Path) -> None:
    """While the node runs, the check finds nothing wrong: the port and data_dir in use are the node's."""
    authority = Authority(tmp_path)
    files = authority.sign("node", "localhost", days=90.5)
    path = write(
        tmp_path / "c.cfg",
        free_port(),
        f"data_dir: {tmp_path}/data\ncsv_dump: {tmp_path}/dump.csv\nssl_certfile: {files.certificate}\n"
        f"ssl_keyfile: {files.key}\nssl_cafile: {authority.file}\n",
    )
    code, out, _ = checked(path)
    assert code == 0
    assert f"ssl_certfile {files.certificate} expires on " in out and "(in 90 days)" in out
    assert not (tmp_path / "data").exists() and not (tmp_path / "dump.csv").exists()
    node = ready(started, path)
    assert f"ssl_certfile {files.certificate} expires on " in node.stderr
    code, out, errors = checked(path)
    assert (code, errors) == (0, "")
    assert f"data_dir {tmp_path}/data is in use, as by a running node" in out
    assert "is in use, as by a running node\n" in out
    assert node.end(15) == 0
    code, out, errors = checked(path)
    assert (code, errors) == (0, "")
    assert "in use" not in out


def test_a_certificate_that_expires_soon_is_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Below 30 days the check asks for a new certificate; the exit code stays 0."""
    files = Authority(tmp_path).sign("node", "localhost", days=3.5)
    path = write(
        tmp_path / "c.cfg", free_port(), f"ssl_certfile: {files.certificate}\nssl_keyfile: {files.key}\n"
    )
    assert daemon.main(["--check-config", "-c", str(path)]) == 0
    assert "(in 3 days): replace it soon\n" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "expected"), [(["--node", "b"], "'b'"), (["--service", "other"], "'other'")]
)
def test_a_named_node_is_looked_for(
    arguments: list[str], expected: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """--node and --service are checked as at a start."""
    path = write(tmp_path / "c.cfg", free_port())
    assert daemon.main(["--check-config", "-c", str(path), *arguments]) == 2
    line = capsys.readouterr().err
    assert expected in line
    assert daemon.main(["-c", str(path), *arguments]) == 2
    assert capsys.readouterr().err == line


def test_a_foreign_bind_is_found_for_the_node_that_is_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Of several nodes only the one of --node must be able to listen here."""
    path = tmp_path / "c.cfg"
    path.write_text(
        "[connmon_service_default]\nname: default\nnodes:\n    a hostname=h1 bind=127.0.0.1\n"
        "    b hostname=h2 bind=192.0.2.1\n"
    )
    assert daemon.main(["--check-config", "-c", str(path)]) == 0
    assert daemon.main(["--check-config", "-c", str(path), "--node", "a"]) == 0
    assert daemon.main(["--check-config", "-c", str(path), "--node", "b"]) == 1
    assert "cannot listen on 192.0.2.1:5800 (bind of node 'b')" in capsys.readouterr().err


def test_a_directory_that_is_closed_to_this_user_is_found() -> None:
    """Permissions are those of the effective user, and the error is the one that writing would raise."""
    with tempfile.TemporaryDirectory(dir="/tmp") as name:
        directory = Path(name)
        directory.chmod(0o755)
        closed, file, free = directory / "closed", directory / "file", directory / "free"
        closed.mkdir(0o555)
        file.write_text("x")
        file.chmod(0o444)
        free.mkdir()
        free.chmod(0o777)
        if user := os.geteuid():
            errors = denied(closed, file, free)
        else:
            os.seteuid(65534)
            try:
                errors = denied(closed, file, free)
            finally:
                os.seteuid(user)
    assert errors == ["Permission denied"] * 3 + [""] * 3


def denied(closed: Path, file: Path, free: Path) -> list[str | None]:
    """Return the result of each check."""
    errors: list[str | None] = []
    for check, path in (
        (check_directory, closed), (check_parent, closed / "x"), (check_file, file),
        (check_directory, free), (check_parent, free / "x"), (check_file, free / "x"),
    ):  # fmt: skip
        try:
            check(str(path))
            errors.append("")
        except PermissionError as error:
            errors.append(error.strerror)
    return errors
