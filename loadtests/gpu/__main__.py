"""Everything that a card should be asked first, in ten minutes: `python -m loadtests.gpu`, or `make gpu`.

Each part runs in a process of its own with a limit of time, so that one that fails or hangs costs only itself.
"""

import argparse
import contextlib
import importlib.metadata
import json
import os
import re
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path

import torch

from loadtests.gpu.decode import time_decode
from loadtests.gpu.kernels import Shape, time_kernels
from loadtests.gpu.report import render
from loadtests.gpu.timing import Row, card_named, guard
from loadtests.gpu.vision import NETWORKS, time_vision
from services.llm_longctx.kernels.device.shapes import ModelShape

_ROOT = Path(__file__).parents[2]
_SLOWER = 4
"""Time that an interpreter may take, as a multiple of a part's limit."""

_DRY = {"TRITON_INTERPRET": "1", "FOVEA_GPU_DRY_RUN": "1"}

TINY = ModelShape("tiny", 2, 32, 4, 2, 16, 48, 64)
TINY_ATTENTION = Shape(heads=2, kv_heads=1, head_dim=16, batch=2, contexts=(256,), dtype=torch.float32)
"""Sizes of a dry run."""

LIMITS_S = {"suites": 150, "kernels": 150, "decode": 200, "vision": 100}
"""Seconds of each part: ten minutes together."""

_VERSIONS = ("torch", "triton", "onnxruntime-gpu", "tensorrt-cu13-libs", "flash-attn", "vllm")

_TEST = re.compile(r"^(tests/gpu/\S+) (PASSED|FAILED|ERROR|SKIPPED)")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run all parts, or one whose rows go to a file; 1 where there is no card, or a suite failed."""
    parser = argparse.ArgumentParser(prog="python -m loadtests.gpu", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--part", choices=LIMITS_S, help="Only this one, in this process.")
    parser.add_argument("--rows", type=Path, default=Path("/dev/stdout"), help="File for the rows of the one part.")
    parser.add_argument("--out", type=Path, help="Folder of reports; default docs/gpu-reports.")
    parser.add_argument(
        "--dry-run", action="store_true",
        help="Run each part on the processor, with tiny sizes and interpreted kernels; it measures nothing.",
    )  # fmt: skip
    given = parser.parse_args(arguments)
    if not (given.dry_run or torch.cuda.is_available()):
        sys.stderr.write("There is no GPU that torch can use. Try: fovea doctor, or --dry-run without a GPU\n")
        return 1
    device = torch.device("cpu") if given.dry_run else torch.device("cuda", 0)
    if given.part:
        write_rows(given.rows, given.part, run_part(given.part, device))
        return 0
    name, today = "dry run" if given.dry_run else torch.cuda.get_device_name(device), datetime.now(UTC).date()
    folder = given.out or _ROOT / ("out/gpu-reports" if given.dry_run else "docs/gpu-reports")
    folder.mkdir(parents=True, exist_ok=True)
    page, rows = folder / f"{today.isoformat()}-{name.lower().replace(' ', '-')}.md", list[Row]()
    for part, limit in LIMITS_S.items():
        rows += run_apart(part, limit * (_SLOWER if given.dry_run else 1), dry_run=given.dry_run)
        page.write_text(render(name, today, dict(_versions()), rows, is_dry=given.dry_run), "utf8")
    sys.stdout.write(f"{page}\n")
    return int(any(row.part == "suites" and row.note.startswith("failed") for row in rows))


def run_part(part: str, device: torch.device) -> Iterator[Row]:
    """Yield the rows of one part; on a processor with tiny sizes."""
    dry = device.type == "cpu"
    card = None if dry else card_named(torch.cuda.get_device_name(device))
    if part == "suites":
        yield from _run_suites()
    elif part == "kernels":
        yield from time_kernels(device, card, TINY_ATTENTION, "triton") if dry else time_kernels(device, card)
    elif part == "decode":
        yield from time_decode(device, card, TINY, 2, 40, torch.float32, "triton") if dry else time_decode(device, card)
    else:
        with tempfile.TemporaryDirectory() as cache:
            yield from time_vision(device, Path(cache), *([NETWORKS[-1:], 64] if dry else []))


def write_rows(file: Path, part: str, rows: Iterator[Row]) -> None:
    """Write rows as they come: those of a process that is ended stay."""
    with file.open("w", encoding="utf8") as out:
        for row in guard(part, "the whole part", "", rows):
            out.write(json.dumps(asdict(row)) + "\n")
            out.flush()


def run_apart(
    part: str,
    limit_s: float,
    command: Sequence[str] = (sys.executable, "-m", "loadtests.gpu"),
    *,
    dry_run: bool = False,
) -> list[Row]:
    """Run one part in a process: its rows, and one that says why, where it did not end well."""
    env = {**os.environ, **(_DRY if dry_run else {})}
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "rows.jsonl"
        file.touch()
        words = [*command, "--part", part, "--rows", str(file), *(["--dry-run"] if dry_run else [])]
        # A session of its own: what it has started ends with it, and leaves the card to the next part.
        with subprocess.Popen(words, cwd=_ROOT, env=env, start_new_session=True) as process:
            try:
                status = process.wait(limit_s)
                end = "" if status == 0 else f"failed: the process ended with {status}"
            except subprocess.TimeoutExpired:
                end = f"failed: it took longer than {limit_s:.0f} s"
            finally:
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(process.pid, signal.SIGKILL)
        rows = [Row(**json.loads(line)) for line in file.read_text("utf8").splitlines()]
    return [*rows, Row(part, "the whole part", "", note=end)] if end else rows


def _run_suites() -> Iterator[Row]:
    """Tests that need a card, each a row as soon as it has ended."""
    command = [sys.executable, "-m", "pytest", "-v", "-n", "0", "--tb=short", "-m", "gpu", "tests/gpu"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=_ROOT) as process:
        line = ""
        for line in process.stdout or ():
            sys.stderr.write(line)
            if found := _TEST.match(line):
                yield Row("suites", found[1].partition("::")[2], "pytest", note=found[2].lower())
    end = ("failed: " if process.returncode else "") + line.strip(" =\n")
    yield Row("suites", "all tests marked gpu", "pytest", note=end)


def _versions() -> Iterator[tuple[str, str]]:
    for name in _VERSIONS:
        try:
            yield name, importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            yield name, "is not installed"


if __name__ == "__main__":
    sys.exit(main())
