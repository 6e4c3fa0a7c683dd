"""A private Prometheus that scrapes the targets of a test, and promtool.

Rules kept here: it is Debian's package, started by the test on a free port of loopback, with its data in
the test's directory. If it is not installed, see tests.support.requirements.
"""

from __future__ import annotations

import contextlib
import json
import subprocess
import urllib.parse
import urllib.request
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from tests.support.requirements import program
from tests.support.servers import _free_port
from tests.support.waiting import wait_for


def promtool(*arguments: str, stdin: bytes = b"") -> str:
    """Return promtool's output. Fail the test if promtool finds an error."""
    done = subprocess.run(
        [program("promtool"), *arguments],
        input=stdin,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        timeout=30,
    )
    output = done.stdout.decode()
    assert done.returncode == 0, output
    return output


class Prometheus:
    def __init__(self, port: int) -> None:
        self._url = f"http://127.0.0.1:{port}"

    def get(self, path: str, **parameters: str) -> Any:
        with urllib.request.urlopen(
            f"{self._url}{path}?{urllib.parse.urlencode(parameters)}", timeout=10
        ) as answer:
            return json.load(answer)

    def query(self, expression: str) -> list[dict[str, Any]]:
        """Return the result of an instant query."""
        result: list[dict[str, Any]] = self.get("/api/v1/query", query=expression)["data"]["result"]
        return result

    def targets(self) -> list[dict[str, Any]]:
        targets: list[dict[str, Any]] = self.get("/api/v1/targets")["data"]["activeTargets"]
        return targets


@contextlib.contextmanager
def running_prometheus(directory: Path, targets: Sequence[str], rules: Path) -> Iterator[Prometheus]:
    """Run a Prometheus that scrapes the targets every half second, as job connmon."""
    server, port = program("prometheus"), _free_port()
    config = directory / "prometheus.yml"
    config.write_text(
        json.dumps({  # which is YAML too
            "global": {"scrape_interval": "500ms", "scrape_timeout": "500ms", "evaluation_interval": "1s"},
            "rule_files": [str(rules)],
            "scrape_configs": [{"job_name": "connmon", "static_configs": [{"targets": list(targets)}]}],
        })
    )  # fmt: skip
    log = directory / "prometheus.log"
    with log.open("wb") as output:
        process = subprocess.Popen(
            [server, f"--config.file={config}", f"--web.listen-address=127.0.0.1:{port}",
             f"--storage.tsdb.path={directory / 'data'}", "--log.level=warn"],
            stdin=subprocess.DEVNULL, stdout=output, stderr=subprocess.STDOUT,
        )  # fmt: skip
    try:
        prometheus = Prometheus(port)

        def answers() -> bool:
            assert process.poll() is None, log.read_text()
            with contextlib.suppress(OSError):
                return bool(prometheus.targets())
            return False

        wait_for(answers, 20, "Prometheus to answer")
        yield prometheus
    finally:
        process.kill()
        process.wait()
