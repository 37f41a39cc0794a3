"""Builds the C++ kernels: the verb `fovea build-kernels`, run by `make setup` where a compiler is installed.

One library per level of instructions, so that what was built on one machine serves another; which is loaded is decided
by the machine that loads it. Knows compilers and files; knows nothing about kernels.
"""

import os
import shutil
import subprocess
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import typer

from fovea.errors import Fault
from services.llm_longctx.kernels.native.isa_targets import PLACE, TARGETS, Target, library_file, sources

_COMPILERS = ("g++", "clang++", "c++")
_FLAGS = (
    *("-std=c++17", "-O3", "-fPIC", "-shared", "-fopenmp", "-fno-math-errno", "-ffp-contract=fast", "-Wno-psabi"),
    "-Wl,-rpath,$ORIGIN",  # where an image puts the library of OpenMP that it has nowhere else
)


def build_kernels(force: bool = typer.Option(False, "--force", help="Build again what is built already.")) -> None:
    """Build the C++ attention kernels for this machine; without a compiler nothing happens.

    A level of instructions that the compiler is too old for is left out.
    """
    compiler = next((found for name in _COMPILERS if (found := shutil.which(name))), None)
    if compiler is None:
        typer.echo("No C++ compiler is installed: attention runs on torch's own kernels.")
        return
    refused: list[Fault] = []
    with ThreadPoolExecutor(os.cpu_count()) as pool:  # a compiler uses one core
        for target, made in [(target, pool.submit(build, compiler, target, force=force)) for target in TARGETS]:
            try:
                typer.echo(f"{target.name}: {made.result().name}")
            except Fault as fault:
                refused.append(fault)
                typer.echo(f"{target.name}: left out. {fault}")
    if len(refused) == len(TARGETS):
        raise refused[-1]


def build(compiler: str, target: Target, *, force: bool = False) -> Path:
    """Build one library. Raises Fault: the compiler refuses; the hint quotes it."""
    wanted = library_file(target)
    if wanted.exists() and not force:
        return wanted
    PLACE.mkdir(exist_ok=True)
    for stale in PLACE.glob(f"{target.name}-*.so"):
        stale.unlink()
    made = wanted.with_suffix(".part")
    units = [str(file) for file in sources() if file.suffix == ".cpp"]
    command = [compiler, *_FLAGS, *target.flags, *units, "-o", str(made)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)  # noqa: S603  # a compiler on the path, our own files
    if done.returncode:
        detail = f"{Path(compiler).name} can't build the kernels for {target.name}."
        raise Fault(detail, hint=done.stderr.strip()[-800:])
    made.replace(wanted)
    return wanted
