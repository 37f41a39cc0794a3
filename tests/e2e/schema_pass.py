"""`python -m tests.e2e.schema_pass [URL] [--examples 10]`: sends what the OpenAPI document allows to the whole product.

Every operation is asked, by schemathesis's requests; no answer may be a 5xx. Without URL a product is started for it.
Work is kept small, so that no request rightly passes its deadline: answers of a few tokens, studies of tiny models.
Models are unloaded last, and loaded again.
"""

import argparse
import json
import re
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx2
import schemathesis
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from requests.exceptions import RequestException

from tests.e2e.conftest import start, stop

ANSWER_S = 180.0
"""Longer than the product's own deadline."""

START_S = 1200.0
UNLOAD = "/unload"

TINY = {
    "/v1/probe": ("lm", "tiny-induction"), "/v1/probe/deconstruction/study": ("steps", 2),
    "/v1/longctx": ("model", "fovea-routing-bytes"),
    "/v1/judge/nuggets": ("how", "similarity"), "/v1/judge/support": ("how", "similarity"),
}  # fmt: skip
"""Field and value that keep the work of routes small where a request leaves it out."""

SMALL_TEXT_MODEL = "fovea-routing-bytes"
TEXT_ROUTES = ("/v1/chat/completions", "/v1/completions", "/v1/responses", "/tokenize", "/detokenize", "/v1/sessions")

MODEL_PATH = re.compile("/v1/models/{name}|/v2/(repository/)?models/{name}")
"""Paths in which every second request names a model that is there: nobody makes up such a name."""

MOST = {
    **dict.fromkeys(("max_tokens", "max_completion_tokens", "max_output_tokens", "max_answer"), 4),
    **dict.fromkeys(("n", "samples", "prompts", "questions", "steps", "passkeys", "pairs", "repeats", "runs"), 2),
}
"""Most that a field that says how much to do may be."""

for _media in ("multipart/related", "multipart/x-mixed-replace", "video/x-motion-jpeg", "video/mp4", "video/webm"):
    schemathesis.openapi.media_type(_media, st.binary(max_size=2000))  # it can't write these by itself


@dataclass
class Asked:
    """Result of one operation: answers by status, and the requests that found a fault or no answer."""

    label: str
    statuses: Counter[int] = field(default_factory=Counter)
    faults: list[str] = field(default_factory=list)

    @property
    def total(self) -> int:
        return self.statuses.total()


def list_operations(url: str) -> list[Any]:
    """All operations of the product's document; those that unload models come last."""
    document = schemathesis.openapi.from_url(f"{url}/openapi.json")
    found: list[Any] = [each.ok() for each in document.get_all_operations()]  # type: ignore[union-attr]  # it raises
    return sorted(found, key=lambda operation: operation.path.endswith(UNLOAD))


def ask_all(
    url: str, examples: int, tell: Callable[[Asked], object] = lambda _: None, only: Sequence[str] = ()
) -> list[Asked]:
    """Ask every operation (those whose label holds one of `only`), `examples` requests each; `tell` hears of each."""
    asked, models = [], [entry["id"] for entry in httpx2.get(f"{url}/v1/models").json()["data"]]
    for operation in list_operations(url):
        if only and not any(words in operation.label for words in only):
            continue
        asked.append(_ask(operation, examples, models))
        tell(asked[-1])
        if operation.path.endswith(UNLOAD):
            _load_all(url)
    return asked


def _ask(operation: Any, examples: int, models: Sequence[str]) -> Asked:
    asked = Asked(operation.label)

    # Failures are noted, not raised: shrinking them would ask a running product for minutes.
    @settings(
        max_examples=examples, deadline=None, derandomize=True, database=None,
        phases=[Phase.explicit, Phase.generate], suppress_health_check=list(HealthCheck),
    )  # fmt: skip
    @given(case=operation.as_strategy())
    def fuzz(case: Any) -> None:
        _keep_small(case)
        if MODEL_PATH.match(operation.path) and asked.total % 2 == 0:
            case.path_parameters["name"] = models[asked.total // 2 % len(models)]
        try:
            answer = case.call(timeout=ANSWER_S)
        except RequestException as error:
            asked.statuses[0] += 1
            asked.faults.append(f"no answer: {error!r}\n{case.as_curl_command()[:2000]}")
            return
        asked.statuses[answer.status_code] += 1
        if answer.status_code >= 500:
            text = answer.content[:500].decode("utf8", "replace")
            asked.faults.append(f"{answer.status_code}: {text}\n{case.as_curl_command()[:2000]}")

    fuzz()
    return asked


def _keep_small(case: Any) -> None:
    if not isinstance(case.body, dict):
        return
    for name, most in MOST.items():
        if isinstance(value := case.body.get(name), int | float) and not isinstance(value, bool):
            case.body[name] = min(value, most)
    for prefix, (name, value) in TINY.items():
        if case.path.startswith(prefix):
            case.body[name] = case.body.get(name) or value
    if case.path.startswith(TEXT_ROUTES):
        case.body["model"] = SMALL_TEXT_MODEL  # nearly every request would stop at an unknown model
        if "max_output_tokens" not in case.body and "max_completion_tokens" not in case.body:
            case.body["max_output_tokens" if case.path == "/v1/responses" else "max_tokens"] = 4


def _load_all(url: str) -> None:
    with httpx2.Client(base_url=url, timeout=ANSWER_S) as client:
        for entry in client.get("/v1/models").json()["data"]:
            client.post(f"/v2/repository/models/{entry['id']}/load", json={})
        until = time.monotonic() + ANSWER_S
        while client.get("/readyz").status_code != httpx2.codes.OK and time.monotonic() < until:
            time.sleep(0.5)


@contextmanager
def _product(url: str | None) -> Iterator[str]:
    if url is not None:
        yield url
        return
    with tempfile.TemporaryDirectory(prefix="fovea-schema-") as folder:
        product = start(Path(folder))
        try:
            product.wait_for(product.is_ready, START_S)
            yield product.url
        finally:
            if product.process.poll() is None:
                stop(product)


def _tell(asked: Asked) -> None:
    print(f"{asked.label:55} {dict(sorted(asked.statuses.items()))}", flush=True)
    for fault in asked.faults:
        print(f"    {fault}", flush=True)


def main() -> int:
    """Ask; the exit status says whether any answer was a 5xx."""
    parser = argparse.ArgumentParser(prog="python -m tests.e2e.schema_pass", description=__doc__)
    parser.add_argument("url", nargs="?", help="a running product; default: one is started")
    parser.add_argument("--examples", type=int, default=10, help="requests of each operation; default 10")
    parser.add_argument("--only", nargs="*", default=(), metavar="LABEL", help="operations whose label holds this")
    parser.add_argument("--out", type=Path, help="file for what was asked, as JSON")
    asked = parser.parse_args()
    begun = time.monotonic()
    with _product(asked.url) as url:
        found = ask_all(url, asked.examples, _tell, asked.only)
    statuses = sum((each.statuses for each in found), Counter[int]())
    faults = sum(len(each.faults) for each in found)
    print(f"{len(found)} operations, {statuses.total()} requests in {time.monotonic() - begun:.0f} s, {faults} faults:")
    print(dict(sorted(statuses.items())))
    if asked.out is not None:
        asked.out.write_text(json.dumps([vars(each) for each in found], indent=1) + "\n")
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(main())
