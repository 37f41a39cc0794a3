"""Managed processes of `fovea up`: each in a session of its own, with a log, restarted with back-off when it dies."""

import asyncio
import contextlib
import signal
import subprocess
import sys
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from shared.serving.up import orphan_cleanup
from shared.settings import environment

_MAX_DEATHS = 5
_DEATH_WINDOW_S = 60.0  # after so many deaths in so many seconds a process is not started again
_FIRST_RESTART_PAUSE_S = 0.5
_LOG_TAIL_LINES = 15
_WRONG_SETTING = 2  # exit code of a first start that would end so again; later ones may find their port still taken


class ProcessDied(Exception):
    """A child died too often, or can't start; the message ends with the last lines of its log."""


@dataclass(eq=False, slots=True)
class ManagedProcess:
    """One process, which is another one after each restart, and its log."""

    name: str
    log: Path
    process: asyncio.subprocess.Process
    task: asyncio.Task[None] | None = None
    starting: asyncio.Lock = field(default_factory=asyncio.Lock)

    async def stop(self, grace_s: float) -> None:
        """SIGTERM, then SIGKILL for what is left of its session after `grace_s`."""
        if self.process.returncode is None:
            self.process.terminate()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(grace_s):
                    await self.process.wait()
        await asyncio.to_thread(orphan_cleanup.end_sessions, [self.process.pid], 0.5)
        await self.process.wait()

    def log_tail(self) -> str:
        """The end of its log."""
        with self.log.open(encoding="utf-8", errors="replace") as lines:
            return "".join(deque(lines, maxlen=_LOG_TAIL_LINES)).rstrip()


class ProcessGroup:
    """The processes, in the order in which they were started."""

    def __init__(self, logs: Path, env: Mapping[str, str], say: Callable[[str], None], grace_s: float) -> None:
        """Keep logs under `logs`, give every child `env`, and report deaths through `say`."""
        self._logs = logs
        self._env = dict(env)
        self._say = say
        self._grace_s = grace_s
        self._all: list[ManagedProcess] = []
        self._reaper = subprocess.Popen(  # noqa: S603  # our own interpreter
            [sys.executable, "-m", orphan_cleanup.__name__], stdin=subprocess.PIPE, start_new_session=True
        )
        self.failed: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def watch(self, pid: int, *, gone: bool = False) -> None:
        """Tell the cleanup of a session that was started elsewhere, or that has ended."""
        if self._reaper.stdin is not None:
            with contextlib.suppress(BrokenPipeError):
                self._reaper.stdin.write(f"{'-' if gone else '+'}{pid}\n".encode())
                self._reaper.stdin.flush()

    async def add(self, name: str, *arguments: str, **env: str) -> ManagedProcess:
        """Start `python -m ARGUMENTS` and keep it alive; `env` are variables of this child alone."""
        log = self._logs / f"{name.replace(' ', '-')}.log"
        log.parent.mkdir(parents=True, exist_ok=True)
        log.write_bytes(b"")
        child = ManagedProcess(name, log, await self._start(log, arguments, env))
        child.task = asyncio.create_task(self._restart(child, arguments, env))
        self._all.append(child)
        return child

    async def stop(self) -> None:
        """Stop all, the last started first, then the cleanup."""
        while self._all:
            child = self._all.pop()
            async with child.starting:  # never between the start of a process and its registration
                if child.task is not None:
                    child.task.cancel()
            await child.stop(self._grace_s)
            self.watch(child.process.pid, gone=True)
        if self._reaper.stdin is not None:
            self._reaper.stdin.close()
        await asyncio.to_thread(self._reaper.wait)
        if self.failed.done():
            self.failed.exception()

    async def _start(self, log: Path, arguments: Sequence[str], own: Mapping[str, str]) -> asyncio.subprocess.Process:
        """Start a process in a session of its own, so that Ctrl-C reaches the supervisor alone."""
        command, env = [sys.executable, "-m", *arguments], environment(**{**self._env, **own})
        with log.open("ab") as out:
            started = await asyncio.create_subprocess_exec(
                *command, stdin=subprocess.DEVNULL, stdout=out, stderr=out, env=env, start_new_session=True
            )
        self.watch(started.pid)
        return started

    async def _restart(self, child: ManagedProcess, arguments: Sequence[str], own: Mapping[str, str]) -> None:
        """Start a child again whenever it ends, until it has done so too often or can't start."""
        deaths: list[float] = []
        while True:
            code, pid, now = await child.process.wait(), child.process.pid, time.monotonic()
            deaths = [*(death for death in deaths if now - death < _DEATH_WINDOW_S), now]
            await asyncio.to_thread(orphan_cleanup.end_sessions, [pid], 0.0)
            self.watch(pid, gone=True)
            if (cant_start := code == _WRONG_SETTING and len(deaths) == 1) or len(deaths) >= _MAX_DEATHS:
                why = "can't start" if cant_start else f"ended {_MAX_DEATHS} times in a minute"
                if not self.failed.done():
                    self.failed.set_exception(ProcessDied(f"{child.name} {why}. Its last lines:\n{child.log_tail()}"))
                return
            pause = _FIRST_RESTART_PAUSE_S * 2 ** (len(deaths) - 1)
            reason = f"signal {signal.Signals(-code).name}" if code < 0 else f"exit code {code}"
            self._say(f"{child.name} ended ({reason}); starting it again in {pause:g} s. Log: {child.log}")
            await asyncio.sleep(pause)
            async with child.starting:
                child.process = await self._start(child.log, arguments, own)
