"""An engine under comparison, in a process of its own that is stopped while it is not asked.

Stopped, because idle threads of some engines keep a processor busy. It speaks JSON, a line each way; see
`engines/answer_loop.py`.
"""

import json
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

from loadtests.bench.peers.environment import PeerMissing

ROOT = Path(__file__).parents[3]
"""Where packages of this repository lie that are not installed."""


@dataclass(frozen=True)
class Generation:
    """When tokens came: marks of (wall s, CPU s, tokens since the last mark), clocks from the beginning of the call.

    `tokens` are those of each prompt, where the engine returns them.
    """

    marks: Sequence[tuple[float, float, int]]
    tokens: Sequence[Sequence[int]] = ()

    def first(self, clock: int) -> float:
        """Seconds to the first token; clock 0 is the wall's, 1 the processor's."""
        return self.marks[0][clock]

    def per_token(self, clock: int) -> float:
        """Seconds per token behind the first, median over steps."""
        gaps = sorted((b[clock] - a[clock]) / b[2] for a, b in zip(self.marks, self.marks[1:], strict=False) if b[2])
        return gaps[len(gaps) // 2]

    def rate(self, clock: int) -> float:
        """Tokens per second, reading included."""
        return sum(mark[2] for mark in self.marks) / self.marks[-1][clock]


class EngineProcess:
    """One engine.

    Attributes:
        name: As in the table.
        build: Its version and build, as it reports them.
    """

    def __init__(self, name: str, python: Path, script: Path, options: Mapping[str, Any], threads: int) -> None:
        """Start it and load the model.

        Raises:
            PeerMissing: It did not start; the text has the end of what it said.
        """
        self.name = name
        own = {"PYTHONPATH": str(ROOT)} if python == Path(sys.executable) else {}
        self._log = Path(tempfile.mkstemp(prefix=f"bench-{script.stem}-", suffix=".log")[1])
        with self._log.open("wb") as log:
            self._process = subprocess.Popen(
                [python, script],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                env={**os.environ, **own, "OMP_NUM_THREADS": str(threads)},
                start_new_session=True,
            )
        try:
            self.build = str(self._ask({**options, "threads": threads})["build"])
        except PeerMissing:
            self.close()
            raise

    def generate(
        self, prompts: Sequence[Sequence[int]], tokens: int, method: Mapping[str, Any] | None = None
    ) -> Generation:
        """Read prompts of equal lengths and go on greedily by so many tokens each.

        Raises:
            PeerMissing: It died.
        """
        asked = {"prompts": [list(ids) for ids in prompts], "tokens": tokens, "method": dict(method or {})}
        answer = self._ask(asked)
        return Generation([(wall, cpu, count) for wall, cpu, count in answer["marks"]], answer["tokens"])

    @property
    def is_over(self) -> bool:
        """Whether it died."""
        return self._process.poll() is not None

    def memory(self) -> float:
        """MiB that its processes hold privately."""
        root = psutil.Process(self._process.pid)
        held = sum(one.memory_full_info().uss for one in (root, *root.children(recursive=True)))
        return float(held / 2**20)

    def close(self) -> None:
        """End it."""
        if self._process.poll() is None:
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()
        for pipe in (self._process.stdin, self._process.stdout):
            if pipe is not None:
                pipe.close()
        self._log.unlink(missing_ok=True)

    def _ask(self, what: Mapping[str, Any]) -> dict[str, Any]:
        sent, received = self._process.stdin, self._process.stdout
        if sent is None or received is None:
            raise PeerMissing(f"{self.name} has no pipes")
        try:
            os.killpg(self._process.pid, signal.SIGCONT)
            sent.write(json.dumps(what).encode() + b"\n")
            sent.flush()
            line = received.readline()
        except (BrokenPipeError, ProcessLookupError):
            line = b""
        if not line:
            with suppress(subprocess.TimeoutExpired):
                self._process.wait(5)  # its last words come behind the end of its answers
            said = self._log.read_text("utf8", errors="replace").strip().splitlines() or ["nothing"]
            raise PeerMissing(f"{self.name} ended; it last said: {' / '.join(said[-6:])}")
        os.killpg(self._process.pid, signal.SIGSTOP)
        answer: dict[str, Any] = json.loads(line)
        return answer
