"""Jobs under load while workers and Redis are killed at random: what is lost, what counts twice, how long it takes.

`python -m loadtests.chaos.jobs --jobs 400 --kills 8`. Starts everything itself, in a temporary folder, on free ports.
"""

import asyncio
import random
import statistics
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, NamedTuple

import typer

from fovea.api.job import FINAL
from fovea.errors import NotReady, QueueFull
from shared.jobs.queue import Payload
from shared.jobs.redis_queue import RedisJobQueue
from shared.jobs.redis_server import RedisServer
from shared.settings import Settings

LONGEST_WAIT_S = 60.0
"""Jobs that are not done so long after the last kill count as lost."""


SUBMITTERS = 8
MEAN_S_PER_KILL = 2.0


class Line(NamedTuple):
    """One line of the workers' ledger."""

    at: float
    job: str
    attempt: int
    pid: int
    what: str


@dataclass
class Story:
    """What happened."""

    accepted: dict[str, float] = field(default_factory=dict)
    """Job id → Unix time of its acceptance."""
    submit_s: list[float] = field(default_factory=list)
    submit_blob_s: list[float] = field(default_factory=list)
    refused: int = 0
    killed_workers: list[tuple[float, int]] = field(default_factory=list)
    killed_redis: int = 0


class Scenario:
    """Redis, workers, submitters and a killer."""

    def __init__(self, folder: Path, workers: int, seconds: float, seed: int) -> None:
        """Prepare in `folder`; `seconds` is what a job takes."""
        self.settings = Settings(data_dir=folder, job_queue_max=10**6)
        self.redis = RedisServer(self.settings)
        self.ledger = folder / "ledger"
        self.seconds = seconds
        self.random = random.Random(seed)
        self.story = Story()
        self.workers: list[subprocess.Popen[bytes]] = []
        self.wanted = workers

    async def run(self, jobs: int, kills: int) -> Story:
        """Submit `jobs` while `kills` happen, then wait for all that was accepted."""
        self.redis.start()
        self.ledger.touch()
        for _ in range(self.wanted):
            self._start_worker()
        queue = RedisJobQueue(self.redis.url, self.settings)
        try:
            pause = kills * MEAN_S_PER_KILL * SUBMITTERS / jobs
            numbers = iter(range(jobs))
            submitting = [self._submit(queue, numbers, pause) for _ in range(SUBMITTERS)]
            await asyncio.gather(*submitting, self._kill(kills))
            await self._settle(queue)
            return self.story
        finally:
            await queue.close()
            for worker in self.workers:
                worker.kill()
                worker.wait()
            self.redis.stop()

    async def outcomes(self) -> tuple[Counter[str], int]:
        """Final states of what was accepted, and how many answers are not those of the attempt that counted."""
        self.redis.start()
        queue = RedisJobQueue(self.redis.url, self.settings)
        states: Counter[str] = Counter()
        wrong = 0
        for job_id in self.story.accepted:
            job = await queue.get(job_id, "local")
            states[job.status] += 1
            if job.status == "succeeded":
                answer = (await queue.result(job_id, "local")).body
                wrong += not answer.startswith(f"{job.attempts} ".encode())
        await queue.close()
        self.redis.stop()
        return states, wrong

    async def _submit(self, queue: RedisJobQueue, numbers: Iterator[int], pause: float) -> None:
        for number in numbers:
            # Every tenth body goes to the blob store.
            body = f"{number} ".encode() + b"x" * (1_500_000 if number % 10 == 0 else 200)
            while True:
                begun = time.perf_counter()
                try:
                    job, _ = await queue.submit(Payload("chaos", "/", body), f"key {number}")
                except (NotReady, QueueFull):
                    self.story.refused += 1
                    await asyncio.sleep(0.1)
                else:
                    spent = self.story.submit_blob_s if len(body) > 1_000_000 else self.story.submit_s
                    spent.append(time.perf_counter() - begun)
                    self.story.accepted[job.id] = time.time()
                    break
            await asyncio.sleep(self.random.uniform(0, 2 * pause))

    async def _kill(self, kills: int) -> None:
        for number in range(kills):
            await asyncio.sleep(self.random.uniform(0.5, 3))
            if number % 3 == 2:
                self.redis.kill()
                self.story.killed_redis += 1
                await asyncio.sleep(self.random.uniform(0.2, 2))
                await asyncio.to_thread(self.redis.start)
            else:
                victim = self.workers.pop(self.random.randrange(len(self.workers)))
                victim.kill()
                self.story.killed_workers.append((time.time(), victim.pid))
                victim.wait()
                self._start_worker()

    def _start_worker(self) -> None:
        program = Path(__file__).with_name("_ledger_worker.py")
        command = [sys.executable, str(program), self.redis.url, str(self.settings.data_dir), str(self.ledger)]
        with (self.settings.data_dir / "workers.log").open("ab") as log:
            self.workers.append(subprocess.Popen([*command, str(self.seconds)], stdout=log, stderr=log))

    async def _settle(self, queue: RedisJobQueue) -> None:
        deadline = time.monotonic() + LONGEST_WAIT_S
        left = set(self.story.accepted)
        while left and time.monotonic() < deadline:
            for job_id in list(left):
                with suppress(NotReady):
                    if (await queue.get(job_id, "local")).status in FINAL:
                        left.discard(job_id)
            await asyncio.sleep(0.2)


def redeliveries(story: Story, lines: list[Line]) -> list[float]:
    """Seconds from each kill of a worker to the next begin of every job that it was running."""
    found = []
    for at, pid in story.killed_workers:
        own = {
            what: {(line.job, line.attempt) for line in lines if line[3:] == (pid, what)} for what in ("begin", "end")
        }
        for cut, _ in own["begin"] - own["end"]:
            later = [line.at for line in lines if line.job == cut and line.what == "begin" and line.at > at]
            found += [min(later) - at] if later else []
    return found


def main(
    jobs: Annotated[int, typer.Option(help="How many to submit.")] = 300,
    kills: Annotated[int, typer.Option(help="How many kills; every third is of Redis.")] = 9,
    workers: Annotated[int, typer.Option(help="Worker processes.")] = 2,
    seconds: Annotated[float, typer.Option(help="Duration of a job.")] = 0.2,
    seed: Annotated[int, typer.Option(help="Makes the times of the kills repeatable.")] = 0,
) -> int:
    """Print what was lost, what counted twice, and latencies; 1 if anything was."""
    with tempfile.TemporaryDirectory() as folder:
        scenario = Scenario(Path(folder), workers, seconds, seed)
        story = asyncio.run(scenario.run(jobs, kills))
        states, wrong = asyncio.run(scenario.outcomes())
        rows = [line.split() for line in scenario.ledger.read_text().splitlines()]
    lines = [Line(float(at), job, int(attempt), int(pid), what) for at, job, attempt, pid, what in rows]
    ends = Counter(line.job for line in lines if line.what == "end")
    last = {line.job: line.at for line in lines if line.what == "end"}
    lost = len(story.accepted) - states["succeeded"]
    report = {
        "accepted": f"{len(story.accepted)} of {jobs}, {story.refused} submits told to come again",
        "killed": f"{len(story.killed_workers)} workers, Redis {story.killed_redis} times",
        "lost": str(lost),
        "answers not of the attempt that counted": str(wrong),
        "jobs run to their end more than once (their effects are keyed by job id)": str(
            sum(count > 1 for count in ends.values())
        ),
        "submit of 200 bytes": _spread(story.submit_s, 1e3, "ms"),
        "submit of 1.5 MB, to the blob store": _spread(story.submit_blob_s, 1e3, "ms"),
        "accepted to done": _spread([last[job] - at for job, at in story.accepted.items() if job in last], 1, "s"),
        "redelivery after a killed worker": _spread(redeliveries(story, lines), 1, "s"),
    }
    for name, value in report.items():
        print(f"{name:>75}  {value}")
    return int(bool(lost or wrong or len(story.accepted) != jobs))


def _spread(values: list[float], scale: float, unit: str) -> str:
    if len(values) < 2:
        return f"{values[0] * scale:.2f} {unit}" if values else "none"
    cuts = statistics.quantiles(values, n=100, method="inclusive")
    return f"median {cuts[49] * scale:.2f}, p99 {cuts[98] * scale:.2f}, worst {max(values) * scale:.2f} {unit}"


if __name__ == "__main__":
    program = typer.Typer(add_completion=False)
    program.command()(main)
    sys.exit(program(standalone_mode=False))
