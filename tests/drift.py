"""Generated files that are committed must be what their generators write: `python -m tests.drift [--write]`."""

from __future__ import annotations

import json
import pathlib
import sys
from collections.abc import Callable, Iterator

ROOT = pathlib.Path(__file__).parents[1]


def stubs() -> Iterator[tuple[pathlib.Path, str]]:
    """The gRPC messages, from `proto/`."""
    from shared.rpc.generate import generate_stubs

    yield from generate_stubs()


def model_pages() -> Iterator[tuple[pathlib.Path, str]]:
    """One page per served model, from its Card."""
    from shared.serving.model_docs import pages

    yield from pages(ROOT / "docs/models")


def claims() -> Iterator[tuple[pathlib.Path, str]]:
    """The measured parts of sparsity claims, from the benches' results: images hold services, not benches."""
    for room, suite in CLAIMS.items():
        results = ROOT / "loadtests/bench/results" / f"{suite}.json"
        if results.exists():
            facts = json.loads(results.read_text("utf8"))["claims"]
            yield ROOT / room / "claims.json", json.dumps(facts, indent=1, sort_keys=True) + "\n"


CLAIMS = {
    "services/llm_longctx/methods/core": "sparsity",
    "services/llm_longctx/models": "sparsity_mixers",
    "services/detection/models": "sparsity_partial",
}
"""Room → the suite whose `claims` it ships."""

GENERATORS: tuple[Callable[[], Iterator[tuple[pathlib.Path, str]]], ...] = (stubs, model_pages, claims)


def main(write: bool) -> int:
    """Compare, or write; return the number of files that differ."""
    wanted = {path: text for generate in GENERATORS for path, text in generate()}
    stale = [path for path, text in wanted.items() if not path.exists() or path.read_text("utf8") != text]
    for path in stale:
        if write:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(wanted[path], "utf8")
        sys.stdout.write(f"{'wrote' if write else 'differs from its generator'}: {path.relative_to(ROOT)}\n")
    if stale and not write:
        sys.stdout.write("Run `make generate` and commit what it writes.\n")
    return 0 if write else len(stale)


if __name__ == "__main__":
    sys.exit(1 if main("--write" in sys.argv[1:]) else 0)
