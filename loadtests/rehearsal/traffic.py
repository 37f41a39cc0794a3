"""Traffic of a rehearsal: callers of two tenants who send the examples of models, more of them as time goes on.

A third of the callers at first, ramped over a quarter of the time; all of them from a step at 40 % on. At half time
replicas are replaced one by one, at three quarters a node is killed. Knows HTTP; knows nothing about SLOs.
"""

import asyncio
import random
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from urllib.parse import quote

import httpx2

from fovea.endpoints import task_path
from loadtests.rehearsal.stage import TENANTS, Stage

RAMP, STEP, RESTART, KILL = 0.25, 0.4, 0.5, 0.75
"""When in the course of the rehearsal."""

AFTERMATH = 0.1
"""How long traffic goes on at least after the last act, where acts took longer than planned."""

FIRST_TENANT_SHARE = 0.75


@dataclass(frozen=True, slots=True)
class Call:
    """One request and its outcome; `at` is seconds from the start, `status` 0 where there was no answer."""

    at: float
    route: str
    tenant: str
    status: int
    seconds: float


@dataclass(frozen=True, slots=True)
class Sample:
    """The state of the stage at one time."""

    at: float
    callers: int
    ready: dict[str, int]
    cpu_seconds: float
    gateway_bytes: int


@dataclass(slots=True)
class Record:
    """All that was seen."""

    calls: list[Call] = field(default_factory=list)
    samples: list[Sample] = field(default_factory=list)
    events: list[tuple[float, str]] = field(default_factory=list)


@dataclass(slots=True)
class _Course:
    """How far a rehearsal is, by its clock."""

    seconds: float
    connections: int
    began: float = field(default_factory=time.monotonic)
    over: asyncio.Event = field(default_factory=asyncio.Event)

    @property
    def at(self) -> float:
        return time.monotonic() - self.began

    @property
    def callers(self) -> int:
        """Callers that are active now."""
        share = self.at / self.seconds
        return self.connections if share >= STEP else max(1, round(self.connections / 3 * min(share / RAMP, 1.0)))


async def run(stage: Stage, seconds: float, connections: int) -> Record:
    """Send traffic for so long, and until all that was to happen has happened; return what did."""
    record = Record()
    async with httpx2.AsyncClient(base_url=stage.url, timeout=120) as client:
        tasks = await _find_tasks(client, stage)
        course = _Course(seconds, connections)
        async with asyncio.TaskGroup() as group:
            for number in range(connections):
                group.create_task(_call(number, stage, client, tasks, record, course))
            group.create_task(_sample(stage, record, course))
            for when, name, act in (
                (RESTART, "rolling restart", stage.restart_rolling),
                (KILL, "kill", stage.kill_node),
            ):
                await _act(when, name, act, record, course)
            await asyncio.sleep(max(seconds - course.at, AFTERMATH * seconds))
            course.over.set()
    return record


async def _find_tasks(client: httpx2.AsyncClient, stage: Stage) -> list[tuple[str, dict[str, object]]]:
    """One request per task of each service: the example of its first model."""
    headers = {"authorization": f"Bearer {stage.keys[TENANTS[0]]}"}
    entries = (await client.get("/v1/models", headers=headers)).raise_for_status().json()["data"]
    found: dict[str, tuple[str, dict[str, object]]] = {}
    for entry in entries:
        route = task_path(entry["task"])
        if route in found or not entry["ready"]:
            continue
        example = await client.get(f"/v1/models/{quote(entry['id'])}/example", headers=headers)
        body = {**example.raise_for_status().json(), "model": entry["id"]}
        found[route] = route, {**body, "max_tokens": 8} if entry["task"] in {"chat", "complete"} else body
    return list(found.values())


async def _call(
    number: int,
    stage: Stage,
    client: httpx2.AsyncClient,
    tasks: list[tuple[str, dict[str, object]]],
    record: Record,
    course: _Course,
) -> None:
    draw = random.Random(number)
    while not course.over.is_set():
        if number >= course.callers:
            await asyncio.sleep(0.1)
            continue
        tenant = TENANTS[draw.random() >= FIRST_TENANT_SHARE]
        route, body = draw.choice(tasks)
        sent = course.at
        try:
            headers = {"authorization": f"Bearer {stage.keys[tenant]}"}
            status = (await client.post(route, json=body, headers=headers)).status_code
        except httpx2.HTTPError:
            status = 0
        record.calls.append(Call(sent, route, tenant, status, course.at - sent))
        if status == 429:
            await asyncio.sleep(0.5)


async def _sample(stage: Stage, record: Record, course: _Course) -> None:
    while not course.over.is_set():
        ready = await asyncio.to_thread(stage.count_ready)
        cpu, memory = await asyncio.to_thread(stage.cpu_seconds), stage.gateway_bytes()
        record.samples.append(Sample(course.at, course.callers, ready, cpu, memory))
        await asyncio.sleep(1)


async def _act(when: float, name: str, act: Callable[[], None], record: Record, course: _Course) -> None:
    """Do something to the stage at its time, or as soon as what was begun before is done."""
    await asyncio.sleep(max(when * course.seconds - course.at, 0))
    record.events.append((course.at, f"{name}: begins"))
    await asyncio.to_thread(act)
    record.events.append((course.at, f"{name}: done"))
