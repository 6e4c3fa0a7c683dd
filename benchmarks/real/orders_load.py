"""Load on an application of orders, without an end: orders_load.py URL."""

from __future__ import annotations

import asyncio
import random
import sys

import httpx

CLIENTS = {"report": 2, "checkout": 6, "forecast": 1, "one": 2}


async def ask(client: httpx.AsyncClient, endpoint: str) -> None:
    while True:
        try:
            if endpoint == "checkout":
                await client.post("/checkout")
            elif endpoint == "one":
                await client.get(f"/orders/{random.randrange(1000)}")
                await asyncio.sleep(random.expovariate(1 / 0.05))
            else:
                await client.get(f"/{endpoint}")
                await asyncio.sleep(random.expovariate(1 / 0.3) if endpoint == "forecast" else 0.0)
        except httpx.HTTPError:
            await asyncio.sleep(0.1)


async def main() -> None:
    async with httpx.AsyncClient(base_url=sys.argv[1], timeout=60) as client:
        await asyncio.gather(*(ask(client, endpoint) for endpoint, n in CLIENTS.items() for _ in range(n)))


asyncio.run(main())
