"""Load on placement, without an end: placement_load.py PORT PROVIDERS THREADS."""

from __future__ import annotations

import contextlib
import http.client
import json
import random
import sys
import threading
import time
import uuid
from typing import Any

PORT, PROVIDERS, THREADS = map(int, sys.argv[1:])
HEADERS = {
    "x-auth-token": "admin",
    "openstack-api-version": "placement 1.39",
    "content-type": "application/json",
}
CONSUMERS = 2000
_uuids = [str(uuid.UUID(int=number + 1)) for number in range(PROVIDERS)]
_local = threading.local()


def call(method: str, path: str, body: Any = None) -> int:
    """Return the status of the answer."""
    if getattr(_local, "connection", None) is None:
        _local.connection = http.client.HTTPConnection("127.0.0.1", PORT, timeout=60)
    _local.connection.request(method, path, None if body is None else json.dumps(body), HEADERS)
    response = _local.connection.getresponse()
    response.read()
    return int(response.status)


def make_providers() -> None:
    for number, name in enumerate(_uuids):
        call("POST", "/resource_providers", {"uuid": name, "name": f"host{number}"})
        inventories = {
            "VCPU": {"total": 64, "allocation_ratio": 16.0},
            "MEMORY_MB": {"total": 262144, "allocation_ratio": 1.5},
            "DISK_GB": {"total": 4000},
        }
        call("PUT", f"/resource_providers/{name}/inventories",
             {"resource_provider_generation": 0, "inventories": inventories})  # fmt: skip
        call("PUT", f"/resource_providers/{name}/traits",
             {"resource_provider_generation": 1, "traits": ["HW_CPU_X86_AVX2", "COMPUTE_NODE"]})  # fmt: skip


def claim() -> None:
    consumer = str(uuid.UUID(int=10**6 + random.randrange(CONSUMERS)))
    resources = {"VCPU": 1, "MEMORY_MB": 512, "DISK_GB": 1}
    body = {
        "allocations": {random.choice(_uuids): {"resources": resources}},
        "project_id": "p",
        "user_id": "u",
        "consumer_generation": None,
        "consumer_type": "INSTANCE",
    }
    if call("PUT", f"/allocations/{consumer}", body) == 204:
        call("DELETE", f"/allocations/{consumer}")


def candidates() -> None:
    resources = f"VCPU:{random.randrange(1, 8)},MEMORY_MB:2048,DISK_GB:20"
    call("GET", f"/allocation_candidates?resources={resources}&required=HW_CPU_X86_AVX2&limit=50")


def listing() -> None:
    call("GET", "/resource_providers?resources=VCPU:1")


def inventory() -> None:
    call("GET", f"/resource_providers/{random.choice(_uuids)}/inventories")


def usages() -> None:
    call("GET", "/usages?project_id=p")


def work() -> None:
    while True:
        (ask,) = random.choices([candidates, listing, inventory, claim, usages], [4, 2, 4, 3, 2])
        try:
            ask()
        except (OSError, http.client.HTTPException):
            with contextlib.suppress(AttributeError):
                _local.connection.close()
            _local.connection = None
        time.sleep(random.expovariate(1 / 0.02))


make_providers()
for _ in range(THREADS - 1):
    threading.Thread(target=work, daemon=True).start()
work()
