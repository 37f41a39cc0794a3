"""Time to first token of prompts whose beginning was read before: one replica, four with affinity, four without.

Each way has documents of its own. They are asked about once, then again with other questions, round after round; the
ways take turns at each question. Replicas are SmolLM2 with one thread each, in one process; gateways have their own.
"""

import json
import statistics
import tempfile
import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import httpx2

from loadtests.bench.contender import Contender
from loadtests.bench.result import Table, row
from shared.jobs.redis_server import RedisServer
from shared.lm.niah_prompts import build_haystack
from shared.settings import Settings
from tests.harness.waiting import wait_until

SERVERS = "loadtests.bench.servers"
ALONE, AFFINITY, LEAST = "one replica", "four, affinity", "four, least loaded"
DOCUMENT_CHARS = 4000
MAX_RATIO = 1.3
LONGEST_START_S = 600.0


def measure(rounds: int = 4, count: int = 8) -> Table:
    """Ask about `count` documents (8 at most), once to read them and `rounds` times with the clock running."""
    documents = {way: list(_documents(way, min(count, 8))) for way in (ALONE, AFFINITY, LEAST)}
    with _gateways() as urls, httpx2.Client(timeout=300) as client:
        for place in range(len(documents[ALONE])):
            for way, url in urls.items():
                _ask(client, url, documents[way][place], "Say yes.")
        first, cached = defaultdict(list), defaultdict(list)
        for turn in range(rounds):
            asked = [
                (way, *_ask(client, urls[way], documents[way][place], f"Question {turn}: what is it about?"))
                for place in range(len(documents[ALONE]))
                for way in urls
            ]
            for way in urls:
                first[way].append(statistics.median(ms for name, ms, _ in asked if name == way))
                cached[way].append(100 * statistics.mean(share for name, _, share in asked if name == way))
    return _table(first, cached)


def _table(first: dict[str, list[float]], cached: dict[str, list[float]]) -> Table:
    base, base_share = statistics.median(first[ALONE]), statistics.median(cached[ALONE])
    rows = [row(way, "ms to first token", values, base) for way, values in first.items()]
    rows += [row(way, "% of prompt cached", values, base_share) for way, values in cached.items()]
    return Table(
        suite="routing",
        title="Routing by what replicas hold",
        how=f"SmolLM2-135M-Instruct, one thread per replica, prompts of {DOCUMENT_CHARS:,} characters that begin as "
        "one before, one request at a time; all replicas on the same cores",
        baseline=ALONE,
        rows=rows,
        targets={
            "four replicas with affinity, times one replica (at most)": (
                statistics.median(first[AFFINITY]) / base,
                MAX_RATIO,
            )
        },
    )


def _documents(way: str, count: int) -> Iterator[str]:
    """Prose that differs from its first words on."""
    for number in range(count):
        prose = build_haystack(DOCUMENT_CHARS)
        yield f"Document {number} of {way}. {prose[number * 97 :]}{prose}"[:DOCUMENT_CHARS]


def _ask(client: httpx2.Client, url: str, document: str, question: str) -> tuple[float, float]:
    """Milliseconds to the first token, and the share of the prompt's tokens that were cached."""
    body = {
        "model": "smollm2-135m-instruct",
        "messages": [{"role": "system", "content": document}, {"role": "user", "content": question}], "max_tokens": 2,
        "stream": True, "stream_options": {"include_usage": True},
    }  # fmt: skip
    began, first_ms, usage = time.perf_counter(), 0.0, {}
    with client.stream("POST", f"{url}/v1/chat/completions", json=body) as answer:
        answer.raise_for_status()
        for line in answer.iter_lines():
            first_ms = first_ms or 1000 * (time.perf_counter() - began) * line.startswith("data: ")
            if line.startswith("data: {"):
                usage = json.loads(line[6:]).get("usage") or usage
    return first_ms, usage["prompt_tokens_details"]["cached_tokens"] / usage["prompt_tokens"]


@contextmanager
def _gateways() -> Iterator[dict[str, str]]:
    """A gateway before one replica, and two before four others."""
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        alone, fleet = (
            stack.enter_context(RedisServer(Settings(data_dir=folder / name, redis_url=None))) for name in ("1", "4")
        )
        common = {"FOVEA_DATA_DIR": str(folder), "FOVEA_LOG_LEVEL": "WARNING", "FOVEA_INTRA_OP_THREADS": "1"}
        common |= {"FOVEA_RATE_LIMIT_RPM": "1000000", "FOVEA_LLM_FIDELITY_SAMPLE_RATE": "0"}

        def start(name: str, module: str, redis: RedisServer, **env: str) -> str:
            made = Contender(name, module, "/", b"", env={**common, "FOVEA_REDIS_URL": redis.url, **env})
            stack.callback(made.stop)
            made.start()
            made.wait(LONGEST_START_S)
            return f"http://127.0.0.1:{made.port}"

        start("replicas", f"{SERVERS}.llm_fleet", fleet, BENCH_REDIS_ALONE=alone.url)
        urls = {
            ALONE: start(ALONE, f"{SERVERS}.fovea_gateway", alone),
            AFFINITY: start(AFFINITY, f"{SERVERS}.fovea_gateway", fleet),
            LEAST: start(LEAST, f"{SERVERS}.fovea_gateway", fleet, FOVEA_LOAD_BALANCING="least-loaded"),
        }
        for url, replicas in zip(urls.values(), (1, 4, 4), strict=True):
            _wait_ready(url, replicas)
        yield urls


def _wait_ready(url: str, replicas: int) -> None:
    def count() -> int:
        found: int = httpx2.get(f"{url}/readyz").json().get("services", {}).get("llm-longctx", {}).get("ready", 0)
        return found

    wait_until(lambda: count() == replicas, LONGEST_START_S, f"readiness of {replicas} replicas", pause_s=0.5)
