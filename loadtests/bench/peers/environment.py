"""Environments of benchmark peers: one virtual environment each, made from its requirements once and kept.

Peers want versions that the project does not have, or are built from source for this processor; so they live apart.
"""

import hashlib
import os
import shutil
import subprocess
import venv
from collections.abc import Mapping
from pathlib import Path

ENVIRONMENTS = Path.home() / ".cache/fovea/bench-peers"
"""Where environments are kept unless told otherwise."""


class PeerMissing(Exception):
    """A peer can't be had on this machine; the text says why."""


def prepare_environment(
    name: str, requirements: Path, root: Path = ENVIRONMENTS, build: Mapping[str, str] | None = None
) -> Path:
    """The interpreter of a peer's environment, which is installed the first time, or when its requirements changed.

    Args:
        name: Folder of the environment below `root`.
        requirements: File for pip; what `NAME-unwanted.txt` next to it lists is taken out again.
        root: Folder of all environments.
        build: Environment variables of a build from source, which needs a C++ compiler; None builds nothing.

    Raises:
        PeerMissing: There is no compiler, or pip can't install it.
    """
    if build is not None and not any(map(shutil.which, ("c++", "g++", "clang++"))):
        raise PeerMissing(f"{name} is built from source, and no C++ compiler is installed")
    python, stamp = root / name / "bin/python", root / name / "installed"
    wanted = hashlib.sha256(requirements.read_bytes() + repr(sorted((build or {}).items())).encode()).hexdigest()
    if python.is_file() and stamp.is_file() and stamp.read_text("utf8") == wanted:
        return python
    venv.create(root / name, with_pip=True)
    command = [python, "-m", "pip", "install", "--quiet", "-r", requirements]
    done = subprocess.run(command, env={**os.environ, **(build or {})}, capture_output=True, text=True, check=False)
    if done.returncode:
        raise PeerMissing(f"pip can't install {name}: {(done.stderr.strip().splitlines() or ['no reason given'])[-1]}")
    if (unwanted := requirements.with_name(f"{requirements.stem}-unwanted.txt")).is_file():
        subprocess.run([python, "-m", "pip", "uninstall", "--quiet", "--yes", "-r", unwanted], check=False)
    stamp.write_text(wanted, "utf8")
    return python
