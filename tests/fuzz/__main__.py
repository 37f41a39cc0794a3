"""`python -m tests.fuzz [SECONDS] [NAME …]`: fuzzes each decoder for a while; what breaks one is kept in `found/`.

Seeds are cut, repeated, overwritten and filled with words of their format; what is found is shrunk. `--out FILE` adds
one JSON line a harness: inputs, seconds and finds.
"""

import argparse
import hashlib
import importlib
import json
import logging
import pkgutil
import random
import sys
import time
import warnings
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from importlib.util import find_spec
from pathlib import Path

from tests.fuzz import decoders
from tests.fuzz.harness import Harness

FOUND = Path(__file__).parent / "found"
PLUGINS = Path(__file__).parents[2] / "plugins"


def _modules() -> Iterator[str]:
    for module in sorted(info.name for info in pkgutil.iter_modules(decoders.__path__)):
        yield f"{decoders.__name__}.{module}"
    for plugin in sorted(file.parts[-3] for file in PLUGINS.glob("*/tests/fuzz_harnesses.py")):
        if find_spec(f"fovea_{plugin}") is not None:
            yield f"plugins.{plugin}.tests.fuzz_harnesses"


HARNESSES: dict[str, Harness] = {
    name: harness for module in _modules() for name, harness in importlib.import_module(module).HARNESSES.items()
}
"""Name → harness: of each file in `decoders`, and of each installed plug-in's `tests/fuzz_harnesses.py`."""


@dataclass
class Report:
    """Report of a harness: inputs, seconds, and what broke it."""

    name: str
    inputs: int = 0
    seconds: float = 0.0
    found: str | None = None


def edit(harness: Harness, dice: random.Random) -> bytes:
    data = dice.choice(harness.seeds)
    for _ in range(dice.randint(0, 6)):
        start = dice.randrange(len(data) + 1)
        end = min(len(data), start + dice.randint(0, 16))
        pieces = (dice.randbytes(dice.randint(0, 8)), b"", data[start:end] * 3, b"\xff" * 4, b"\0" * 8)
        piece = dice.choice((*pieces, *(dice.choice(harness.words) for _ in pieces if harness.words)))
        data = data[:start] + piece + data[end:]
    return harness.repair(data) if dice.random() < 0.5 else data


def fuzz(name: str, harness: Harness, seconds: float) -> Report:
    report, dice, begun = Report(name), random.Random(), time.monotonic()
    while report.found is None and report.seconds < seconds:
        data = edit(harness, dice)
        report.inputs += 1
        if (error := broken_by(harness, data)) is not None:
            report.found = _keep(name, shrink(harness, data, type(error)), error)
        report.seconds = time.monotonic() - begun
    return report


def broken_by(harness: Harness, data: bytes) -> BaseException | None:
    """The error that a decoder must not raise, None where it ends well."""
    try:
        harness.check(data)
    except (KeyboardInterrupt, SystemExit):
        raise
    except BaseException as error:  # noqa: BLE001  # panics of decoders in Rust are no `Exception`
        return error
    return None


def shrink(harness: Harness, data: bytes, kind: type[BaseException]) -> bytes:
    """A shorter input that raises the same kind of error: pieces are left out as long as it does."""
    size = len(data) // 2
    while size:
        start = 0
        while start < len(data):
            if type(broken_by(harness, (shorter := data[:start] + data[start + size :]))) is kind:
                data = shorter
            else:
                start += size
        size //= 2
    return data


def _keep(name: str, data: bytes, error: BaseException) -> str:
    """Write a found input; its file's name."""
    sys.stderr.write(f"{name}: {type(error).__name__}: {error}\n")
    FOUND.mkdir(exist_ok=True)
    file = f"{name}-{hashlib.sha256(data).hexdigest()[:12]}"
    (FOUND / file).write_bytes(data)
    return file


def main() -> int:
    """Fuzz; the exit status says whether anything broke."""
    parser = argparse.ArgumentParser(prog="make fuzz", description=__doc__)
    parser.add_argument("seconds", nargs="?", type=float, default=60.0, help="of each harness; default 60")
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"one of {', '.join(HARNESSES)}; default all")
    parser.add_argument("--out", type=Path, help="file that gets a JSON line of each harness")
    asked = parser.parse_args()
    if unknown := set(asked.names) - HARNESSES.keys():
        parser.error(f"there is no harness {min(unknown)}; known are {', '.join(HARNESSES)}")
    logging.disable()  # what libraries say of each input would hide what is found
    warnings.simplefilter("ignore")
    broken = 0
    for name in asked.names or HARNESSES:
        report = fuzz(name, HARNESSES[name], asked.seconds)
        broken += report.found is not None
        print(f"{name:14} {report.inputs:>9,} inputs {report.seconds:>6.0f} s  {report.found or 'fine'}", flush=True)
        if asked.out is not None:
            with asked.out.open("a", encoding="utf8") as lines:
                lines.write(json.dumps(asdict(report)) + "\n")
    return 1 if broken else 0


if __name__ == "__main__":
    sys.exit(main())
