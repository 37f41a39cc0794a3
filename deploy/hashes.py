"""Hashes of the packages in images: writes `requirements-hashes.txt`, and selects from it what an image installs.

    python deploy/hashes.py write                  resolve again, within constraints.txt (needs `pip install uv`)
    python deploy/hashes.py select REPORT          lines for `pip install --require-hashes`, of a report that
                                                   `pip install --dry-run --report REPORT …` wrote

PyTorch, and what comes with it alone, is left out: its builds differ by index, so each image takes it without a hash.
Runs with Python's own library, because it runs before anything is installed.
"""

import json
import re
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
FILE = ROOT / "requirements-hashes.txt"

UNHASHED = re.compile(r"torch|triton|tensorrt|nvidia-|cuda-")
"""Beginnings of names that are taken without a hash, with `tritonclient` as the exception."""

HEAD = """\
# Hashes of what images install, for every platform: `python deploy/hashes.py write` makes this file from
# all pyproject.toml, constraints.txt and requirements-data.txt. The Dockerfile passes what it needs of it to
# `pip install --require-hashes`.
"""


def is_hashed(name: str) -> bool:
    """Whether a package is installed by hash."""
    return name == "tritonclient" or UNHASHED.match(name) is None


def read_hashes(text: str) -> dict[str, tuple[str, str]]:
    """Name → (version, the whole requirement with its hashes)."""
    found = {}
    for block in re.split(r"\n(?=[A-Za-z0-9])", "\n" + text):
        if match := re.match(r"([A-Za-z0-9._-]+)==([^\s;]+)", block):
            found[normalise(match[1])] = (match[2], re.sub(r"(==\S+)[^\\\n]*\\", r"\1 \\", block, count=1))
    return found


def normalise(name: str) -> str:
    """A name as PEP 503 writes it."""
    return re.sub(r"[-_.]+", "-", name).lower()


def select(report: Any, known: dict[str, tuple[str, str]]) -> str:
    """Requirements with hashes of what a report would install; `SystemExit` if the file lacks a package's version."""
    lines, missing = [], []
    for entry in report["install"]:
        name, version = normalise(entry["metadata"]["name"]), entry["metadata"]["version"]
        if name.startswith("fovea") or not is_hashed(name):
            continue
        if known.get(name, ("",))[0] != version:
            missing.append(f"{name}=={version}")
        else:
            lines.append(known[name][1].rstrip())
    if missing:
        raise SystemExit(f"{FILE.name} has no hashes of {', '.join(missing)}. Try: python deploy/hashes.py write")
    return "\n".join(lines) + "\n"


def write() -> None:
    """Resolve again and write the file."""
    # The extra gpu adds ONNX Runtime's own build, and packages that can be asked about only where there is a GPU.
    extras = ["--extra", "all", "--extra", "cluster", "--extra", "cpu"]
    universal = ("--universal", "--python-version", "3.11")
    resolved = _compile("pyproject.toml", "-", *extras, *universal, given="\n".join(list_requirements()))
    resolved += _compile("-", "--no-deps", given="onnxruntime-gpu")
    blocks = {**read_hashes(resolved), **read_hashes(_compile("requirements-data.txt", "--no-deps"))}
    kept = [block.strip() for name, (_, block) in sorted(blocks.items()) if is_hashed(name)]
    FILE.write_text(HEAD + "\n".join(kept) + "\n", "utf8")


def list_requirements() -> list[str]:
    """Requirements of plug-ins that an image may have, without Fovea and other plug-ins."""
    projects = (tomllib.loads(file.read_text("utf8"))["project"] for file in ROOT.glob("plugins/*/pyproject.toml"))
    used = [
        p for p in projects if {*(points := p["entry-points"])} - {"fovea.commands"} and "fovea.recipes" not in points
    ]
    lines = {line for project in used for line in project["dependencies"]}
    return sorted(line for line in lines if not line.startswith("fovea"))


def _compile(source: str, *options: str, given: str | None = None) -> str:
    quiet = ["--no-annotate", "--no-header", "--no-emit-index-url", "--quiet"]
    command = ["uv", "pip", "compile", source, "--generate-hashes", "-c", "constraints.txt", *quiet, *options]
    done = subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True, input=given)  # noqa: S603  # ours
    return done.stdout


if __name__ == "__main__":
    match sys.argv[1:]:
        case ["write"]:
            write()
        case ["select", path]:
            sys.stdout.write(select(json.loads(Path(path).read_text("utf8")), read_hashes(FILE.read_text("utf8"))))
        case _:
            sys.exit(__doc__)
