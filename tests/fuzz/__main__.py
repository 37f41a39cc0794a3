"""`python -m tests.fuzz [SECONDS] [NAME …]`: fuzzes each decoder for a while; what breaks one is kept in `found/`.

Hypothesis edits the seeds: it cuts, repeats, overwrites and inserts, and shrinks what it finds.
"""

from __future__ import annotations

import hashlib
import sys
import time
from pathlib import Path

from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from tests.fuzz.harnesses import HARNESSES, Harness

FOUND = Path(__file__).parent / "found"


@st.composite
def edited(draw: st.DrawFn, seeds: tuple[bytes, ...]) -> bytes:
    """A seed after a few edits."""
    data = draw(st.sampled_from(seeds))
    for _ in range(draw(st.integers(0, 6))):
        start = draw(st.integers(0, len(data)))
        end = min(len(data), start + draw(st.integers(0, 16)))
        piece = draw(
            st.one_of(st.binary(max_size=8), st.sampled_from([b"", data[start:end] * 3, b"\xff" * 4, b"\0" * 8]))
        )
        data = data[:start] + piece + data[end:]
    return data


def fuzz(name: str, harness: Harness, seconds: float) -> tuple[int, bytes | None]:
    """Run a harness for a while: how many inputs were tried, and the first that broke it."""
    until, count, last = time.monotonic() + seconds, 0, b""

    @settings(
        max_examples=100,
        deadline=None,
        database=None,
        suppress_health_check=list(HealthCheck),
        phases=[Phase.generate, Phase.shrink],
    )
    @given(edited(harness.seeds))
    def batch(data: bytes) -> None:
        nonlocal count, last
        count, last = count + 1, data
        harness.check(data)

    while time.monotonic() < until:
        try:
            batch()
        except Exception as error:  # noqa: BLE001  # whatever it is, it is what is looked for
            sys.stderr.write(f"{name}: {type(error).__name__}: {error}\n")
            FOUND.mkdir(exist_ok=True)
            (FOUND / f"{name}-{hashlib.sha256(last).hexdigest()[:12]}").write_bytes(last)
            return count, last
    return count, None


def main(arguments: list[str]) -> int:
    """Fuzz; the exit status says whether anything broke."""
    seconds = float(arguments[0]) if arguments else 60.0
    broken = 0
    for name in arguments[1:] or HARNESSES:
        count, found = fuzz(name, HARNESSES[name], seconds)
        broken += found is not None
        sys.stdout.write(f"{name:14} {count:>9,} inputs  {'BROKEN' if found is not None else 'fine'}\n")
    return 1 if broken else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
