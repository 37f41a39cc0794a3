"""The loop of an engine's process: a line of JSON says what to load, each further one what to generate.

A `generate` yields 0 when it is ready to begin, then at each step how many tokens came; it may return them. Imports
nothing of ours, since peers have environments of their own.
"""

import json
import os
import sys
import time
from collections.abc import Callable, Generator
from typing import Any

Generate = Callable[[list[list[int]], int, dict[str, Any]], Generator[int, None, list[list[int]] | None]]


def serve(load: Callable[[dict[str, Any]], tuple[str, Generate]]) -> None:
    """Load, say what was built how, and answer until nobody asks; whatever engines print goes to stderr."""
    answers = os.fdopen(os.dup(1), "w", encoding="utf8")
    os.dup2(2, 1)
    build, generate = load(json.loads(sys.stdin.readline()))
    _say(answers, {"build": build})
    for line in sys.stdin:
        asked = json.loads(line)
        marks: list[tuple[float, float, int]] = []
        steps = generate(asked["prompts"], asked["tokens"], asked["method"])
        next(steps)
        wall, cpu = time.perf_counter(), time.process_time()
        try:
            while True:
                count = next(steps)
                marks.append((time.perf_counter() - wall, time.process_time() - cpu, count))
        except StopIteration as end:
            _say(answers, {"marks": marks, "tokens": end.value or []})


def _say(answers: Any, what: dict[str, Any]) -> None:
    answers.write(json.dumps(what) + "\n")
    answers.flush()
