"""Mixed traffic: every model's example as it is, broken copies of it, and copies sent as jobs. Knows HTTP only."""

import asyncio
import json
import random
from collections import Counter
from dataclasses import dataclass, field
from typing import Any

import httpx2

from fovea.endpoints import task_path

ANSWER_S = 120.0
_PIECES = (b"", b"\0" * 8, b"\xff" * 4, b"[" * 200, b'"', b"NaN", b"-1", b"9" * 30, b"{}")


@dataclass
class Traffic:
    """Requests to a running gateway.

    Attributes:
        url: The gateway.
        services: Whose models are asked; empty for all.
        statuses: How many answers had which status; 0 is none.
    """

    url: str
    services: frozenset[str] = frozenset()
    statuses: Counter[int] = field(default_factory=Counter)

    async def run(self, seconds: float, concurrency: int = 4, share_broken: float = 0.4) -> None:
        """Send for a while, `concurrency` at a time; a share of the requests is broken, a tenth are jobs."""
        async with httpx2.AsyncClient(base_url=self.url, timeout=ANSWER_S) as client:
            examples = await self._examples(client)
            until = asyncio.get_running_loop().time() + seconds

            async def send_many(seed: int) -> None:
                dice = random.Random(seed)
                while asyncio.get_running_loop().time() < until:
                    path, body = dice.choice(examples)
                    if dice.random() < share_broken:
                        body = _edit(body, dice)
                    headers = {"prefer": "respond-async"} if dice.random() < 0.1 else {}
                    await self._send(client, path, body, headers)

            await asyncio.gather(*(send_many(seed) for seed in range(concurrency)))

    async def _send(self, client: Any, path: str, body: bytes, headers: dict[str, str]) -> None:
        try:
            answer = await client.post(path, content=body, headers={"content-type": "application/json", **headers})
        except httpx2.HTTPError:
            self.statuses[0] += 1
        else:
            self.statuses[answer.status_code] += 1

    async def _examples(self, client: Any) -> list[tuple[str, bytes]]:
        """Path and body of each model's example.

        Raises:
            RuntimeError: There is none.
        """
        found = []
        for entry in (await client.get("/v1/models")).json()["data"]:
            if self.services and entry["service"] not in self.services:
                continue
            answer = await client.get(f"/v1/models/{entry['id']}/example")
            if answer.status_code == httpx2.codes.OK:
                found.append((task_path(entry["task"]), json.dumps(answer.json()).encode()))
        if not found:
            raise RuntimeError("no model of this gateway has an example")
        return found


def _edit(body: bytes, dice: random.Random) -> bytes:
    """A copy with a few pieces replaced."""
    for _ in range(dice.randint(1, 4)):
        start = dice.randrange(len(body) + 1)
        body = body[:start] + dice.choice(_PIECES) + body[start + dice.randrange(12) :]
    return body
