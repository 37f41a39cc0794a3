"""`python -m tests.e2e.schema_pass URL [--examples 10]`: sends what the OpenAPI document allows to the whole product.

Every operation is asked, by schemathesis's requests; no answer may be a 5xx. Work is kept small, so that no request
rightly passes its deadline: answers of a few tokens, studies of tiny models. Models are unloaded last, and loaded
again.
"""

import argparse
import re
from collections import Counter
from typing import Any

import httpx2
import schemathesis
from hypothesis import strategies as st

from tests.harness.openapi_fuzz import fuzz
from tests.harness.waiting import is_ready, wait_until

ANSWER_S = 180.0
"""Longer than the product's own deadline."""

TINY: dict[str, dict[str, Any]] = {
    "/v1/probe": {"lm": "tiny-induction"}, "/v1/longctx": {"model": "fovea-routing-bytes"},
    "/v1/probe/deconstruction/study": {
        "steps": 2, "size": {"width": 16, "layers": 2, "heads": 2, "context": 32, "batch": 2}
    },
    "/v1/judge/nuggets": {"how": "similarity"}, "/v1/judge/support": {"how": "similarity"},
}  # fmt: skip
"""Fields and values that keep the work of routes small where a request leaves them out."""

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


def ask_all(url: str, examples: int) -> tuple[int, int]:
    """Ask every operation so often; return how many operations there are, and how many requests were sent."""
    document = httpx2.get(f"{url}/openapi.json").json()
    names = list_ready(url)
    asked = Counter[str]()

    def prepare(case: Any) -> None:
        label = case.operation.label
        if MODEL_PATH.match(case.operation.path) and asked[label] % 2 == 0:
            case.path_parameters["name"] = names[asked[label] // 2 % len(names)]
        asked[label] += 1
        _keep_small(case)

    def is_last(operation: Any) -> bool:
        return bool(operation.path.endswith("/unload"))

    how: dict[str, Any] = {"examples": examples, "prepare": prepare, "timeout": ANSWER_S}
    fuzz(document, url, 1, wanted=lambda operation: not is_last(operation), **how)
    try:
        fuzz(document, url, 1, wanted=is_last, **how)
    finally:
        for name in sorted({*names} - {*list_ready(url)}):
            httpx2.post(f"{url}/v2/repository/models/{name}/load", json={}, timeout=ANSWER_S)
        wait_until(lambda: is_ready(url), ANSWER_S, "all models are loaded again")
    return len(asked), asked.total()


def list_ready(url: str) -> list[str]:
    return [entry["id"] for entry in httpx2.get(f"{url}/v1/models").json()["data"] if entry["ready"]]


def _keep_small(case: Any) -> None:
    if not isinstance(case.body, dict):
        return
    for name, most in MOST.items():
        if isinstance(value := case.body.get(name), int | float) and not isinstance(value, bool):
            case.body[name] = min(value, most)
    for prefix, fields in TINY.items():
        if case.path.startswith(prefix):
            case.body.update({name: case.body.get(name) or value for name, value in fields.items()})
    if case.path.startswith(TEXT_ROUTES):
        case.body["model"] = SMALL_TEXT_MODEL  # nearly every request would stop at an unknown model
        if "max_output_tokens" not in case.body and "max_completion_tokens" not in case.body:
            case.body["max_output_tokens" if case.path == "/v1/responses" else "max_tokens"] = 4


if __name__ == "__main__":
    parser = argparse.ArgumentParser(prog="python -m tests.e2e.schema_pass", description=__doc__)
    parser.add_argument("url", help="a running product")
    parser.add_argument("--examples", type=int, default=10, help="requests of each operation; default 10")
    given = parser.parse_args()
    operations, requests = ask_all(given.url, given.examples)
    print(f"{operations} operations, {requests} requests, no 5xx.")
