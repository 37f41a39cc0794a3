"""Speed-up of a judge by a shared prompt prefix: pairs a second with a few-shot template, known beginning or not.

One language model, SmolLM2, serves both contenders in turn, round after round. “Warm” sends the template as it is, so
that its examples are read once; “cold” puts a mark of its own before each prompt, so that nothing is shared and every
token is read for every pair. Both judge pairs of the mini-collection through the judge's own code.
"""

import contextlib
import itertools
import os
import statistics
import tempfile
import time
from collections.abc import Iterator

import httpx2

from loadtests.bench.contender import run_python
from loadtests.bench.result import Table, row
from services.relevance_judge.chat_client import ChatClient
from services.relevance_judge.judge import build_messages
from services.relevance_judge.prompt_template import get_template, make_fence, render_prompt
from services.relevance_judge.schemas import Pair
from services.relevance_judge.storage.mini_collection import load_mini_collection
from shared.registry import CallContext
from tests.harness.waiting import free_port, wait_until

TEMPLATE = "few-shot"
COLD, WARM = "every prompt new", "shared prefix known"
SHARE = 0.8
"""Of the ratio of tokens that is left as a ratio of speed, by the issue."""


def measure(rounds: int = 4, count: int = 12) -> Table:
    """Alternate cold and warm; medians over rounds. `count` is pairs per round and contender."""
    pairs = itertools.cycle(_pairs())
    with tempfile.TemporaryDirectory(prefix="fovea-bench-") as folder:
        port = free_port()
        env = {**os.environ, "FOVEA_DATA_DIR": folder, "FOVEA_LOG_LEVEL": "WARNING"}
        words = ["-m", "shared.serving", "llm-longctx", "--http-port", str(port)]
        with run_python(words, env), contextlib.closing(ChatClient(f"http://127.0.0.1:{port}")) as endpoint:
            wait_until(lambda: _is_ready(port), 300, "the language model is ready", pause_s=0.5)
            prompt, prefix = _tokens(endpoint, next(pairs))
            speed: dict[str, list[float]] = {COLD: [], WARM: []}
            for turn in range(rounds + 1):
                for name in (COLD, WARM) if turn % 2 else (WARM, COLD):
                    found = _speed(endpoint, [next(pairs) for _ in range(min(count, 48))], cold=name == COLD)
                    if turn:  # the first warms up both
                        speed[name].append(found)
    return _table(speed, prompt, prefix)


def _pairs() -> Iterator[Pair]:
    found = load_mini_collection()
    return iter([Pair(query=found.topics[qid], passage=found.passages[docid]) for qid, docid in found.labels])


def _speed(endpoint: ChatClient, pairs: list[Pair], *, cold: bool) -> float:
    """Pairs a second, one after another; the answer is one token, so that reading is what is measured."""
    chosen, begun = get_template(TEMPLATE), time.perf_counter()
    for pair in pairs:
        shown = render_prompt(chosen, pair.query, pair.passage, mark=make_fence(pair.query, pair.passage))
        first, *rest = build_messages(shown)
        if cold:
            first = {**first, "content": f"{os.urandom(8).hex()}\n{first['content']}"}
        endpoint.chat([first, *rest], CallContext(), max_tokens=1)
    return len(pairs) / (time.perf_counter() - begun)


def _tokens(endpoint: ChatClient, pair: Pair) -> tuple[int, int]:
    """Tokens of a whole prompt, and of what all prompts of the template share."""
    chosen = get_template(TEMPLATE)
    ids = []
    for query in (pair.query, "something else entirely"):
        shown = render_prompt(chosen, query, pair.passage, mark=make_fence(query, pair.passage))
        ids.append(endpoint.tokenize(CallContext(), messages=build_messages(shown)))
    shared = next((place for place, (a, b) in enumerate(zip(*ids, strict=False)) if a != b), len(ids[0]))
    return len(ids[0]), shared


def _table(speed: dict[str, list[float]], prompt: int, prefix: int) -> Table:
    base = statistics.median(speed[COLD])
    ratio = statistics.median(speed[WARM]) / base
    tokens = prompt / max(prompt - prefix, 1)
    return Table(
        suite="judge",
        title="A judge's shared prompt prefix",
        how=f"SmolLM2-135M-Instruct, template {TEMPLATE}: {prefix} of {prompt} tokens are shared by all pairs. Pairs "
        "are judged one after another through /v1/chat/completions; cold prompts begin with a mark of their own",
        baseline=COLD,
        rows=[row(name, "pairs / s", values, base) for name, values in speed.items()],
        targets={
            "pairs a second, warm × cold": (ratio, 3.0),
            f"of {SHARE} × cold / warm tokens": (ratio, SHARE * tokens),
            "tokens in the shared prefix": (float(prefix), 400.0),
        },
    )


def _is_ready(port: int) -> bool:
    try:
        found = httpx2.get(f"http://127.0.0.1:{port}/v1/models").json()["data"]
    except (httpx2.HTTPError, ValueError, KeyError):
        return False
    return bool(found) and bool(found[0]["ready"])
