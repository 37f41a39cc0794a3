"""Everything that a card should be asked first, in ten minutes: `python -m loadtests.gpu`, or `make gpu`.

Each part runs in a process of its own with a limit of time, so that one that fails or hangs costs only itself.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from pathlib import Path

import torch

from loadtests.gpu.decode import time_decode
from loadtests.gpu.kernels import time_kernels
from loadtests.gpu.report import render
from loadtests.gpu.timing import Row, card_named
from loadtests.gpu.vision import time_vision

_ROOT = Path(__file__).parents[2]
_REPORTS = _ROOT / "docs/gpu-reports"

LIMITS_S = {"suites": 150, "kernels": 150, "decode": 200, "vision": 100}
"""Seconds of each part: ten minutes together."""

_VERSIONS = ("torch", "triton", "onnxruntime-gpu", "tensorrt-cu13-libs", "flash-attn", "vllm")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run all parts, or one whose rows go to a file; 1 where there is no card, or a suite failed."""
    parser = argparse.ArgumentParser(prog="python -m loadtests.gpu", description=__doc__.splitlines()[0])
    parser.add_argument("--part", choices=LIMITS_S, help="Only this one, in this process.")
    parser.add_argument("--rows", type=Path, help="File for the rows of the one part.")
    parser.add_argument("--out", type=Path, default=_REPORTS, help="Folder of reports.")
    given = parser.parse_args(arguments)
    if not torch.cuda.is_available():
        sys.stderr.write("There is no GPU that torch can use. Try: fovea doctor\n")
        return 1
    device = torch.device("cuda", 0)
    if given.part:
        write_rows(given.rows, run_part(given.part, device))
        return 0
    rows = [row for part, limit in LIMITS_S.items() for row in run_apart(part, limit)]
    name, today = torch.cuda.get_device_name(device), datetime.now(UTC).date()
    given.out.mkdir(parents=True, exist_ok=True)
    page = given.out / f"{today.isoformat()}-{name.lower().replace(' ', '-')}.md"
    page.write_text(render(name, today, dict(_versions()), rows), "utf8")
    sys.stdout.write(f"{page}\n")
    return int(any(row.part == "suites" and row.note.startswith("failed") for row in rows))


def run_part(part: str, device: torch.device) -> Iterator[Row]:
    """Yield the rows of one part."""
    card = card_named(torch.cuda.get_device_name(device)) if device.type == "cuda" else None
    if part == "suites":
        yield _run_suites()
    elif part == "kernels":
        yield from time_kernels(device, card)
    elif part == "decode":
        yield from time_decode(device, card)
    else:
        with tempfile.TemporaryDirectory() as cache:
            yield from time_vision(device, Path(cache))


def write_rows(file: Path, rows: Iterator[Row]) -> None:
    """Write rows as they come: those of a process that is ended stay."""
    with file.open("w", encoding="utf8") as out:
        for row in rows:
            out.write(json.dumps(row.as_json()) + "\n")
            out.flush()


def run_apart(part: str, limit_s: float, command: Sequence[str] = (sys.executable, "-m", "loadtests.gpu")) -> list[Row]:
    """Run one part in a process: its rows, and one that says why, where it did not end well."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "rows.jsonl"
        file.touch()
        try:
            done = subprocess.run(  # our own module
                [*command, "--part", part, "--rows", str(file)], timeout=limit_s, check=False, cwd=_ROOT
            )
            end = "" if done.returncode == 0 else f"failed: the process ended with {done.returncode}"
        except subprocess.TimeoutExpired:
            end = f"failed: it took longer than {limit_s:.0f} s"
        rows = [Row(**json.loads(line)) for line in file.read_text("utf8").splitlines()]
    return [*rows, Row(part, "the whole part", "", note=end)] if end else rows


def _run_suites() -> Row:
    """Tests that need a card."""
    command = [sys.executable, "-m", "pytest", "-q", "-n", "0", "-m", "gpu", "tests/gpu"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=_ROOT)  # ours
    last = done.stdout.strip().splitlines()[-1] if done.stdout.strip() else done.stderr.strip()[-200:]
    return Row("suites", "tests marked gpu", "pytest", note=last if done.returncode == 0 else f"failed: {last}")


def _versions() -> Iterator[tuple[str, str]]:
    for name in _VERSIONS:
        try:
            yield name, importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            yield name, "is not installed"


if __name__ == "__main__":
    sys.exit(main())
