"""Where mutmut works: a folder of links to the tree, with a configuration for one module's files and tests.

mutmut copies the tree into `mutants/` under that folder, so a mutant never stands in the tree itself.
"""

import contextlib
import json
import os
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
PLUGINS = {folder.name: folder for folder in sorted(ROOT.glob("plugins/*/fovea_*"))}
"""Packages of plug-ins. Mutmut names a mutant by its path, so each lies where its import name says."""
PACKAGES = ("fovea", "services", "shared", *PLUGINS)
ALSO_COPY = ("conftest.py", "deploy", "docs", "example.py", "loadtests", "plugins", "proto", "tests")
_SETTINGS = {
    "source_paths": list(PACKAGES),
    "also_copy": list(ALSO_COPY),
    # torch, gRPC and Redis clients have threads: mutants are forked from a process that never ran a test.
    "process_isolation": "forkserver",
    "track_dependencies": False,
    "use_git_change_detection": False,
    # A part of the suite may skip what the whole suite may not.
    "pytest_add_cli_args": [
        *("-n0", "-m", "not release", "-p", "no:cacheprovider", "-p", "no:tests.harness.skips"),
        *("-p", "tests.mutation.quick_first"),
    ],
    "timeout_constant": 15.0,
    "timeout_multiplier": 4.0,
}


@dataclass(frozen=True)
class Module:
    """A core module: its files, and the tests that exercise it."""

    name: str
    files: tuple[str, ...]
    tests: tuple[str, ...]


def load_modules() -> dict[str, Module]:
    rows = tomllib.loads((Path(__file__).parent / "modules.toml").read_text("utf8"))
    return {name: Module(name, tuple(row["files"]), tuple(row["tests"])) for name, row in rows.items()}


def import_path(file: str) -> str:
    """Return a file's path below the folder that Python imports its package from."""
    for package, folder in PLUGINS.items():
        if (ROOT / file).is_relative_to(folder):
            return str(Path(package) / (ROOT / file).relative_to(folder))
    return file


class Workspace:
    """One module's working folder, made anew."""

    def __init__(self, module: Module) -> None:
        self.folder = ROOT / "out/mutation" / module.name
        shutil.rmtree(self.folder, ignore_errors=True)
        # Python remembers folders of PYTHONPATH that are missing when it starts, so mutmut's must be there.
        (self.folder / "mutants").mkdir(parents=True)
        for name in (*PACKAGES, *ALSO_COPY):
            (self.folder / name).symlink_to(PLUGINS.get(name, ROOT / name))
        own: dict[str, Any] = {"only_mutate": [import_path(file) for file in module.files]}
        own["pytest_add_cli_args_test_selection"] = list(module.tests)
        lines = [f"{key} = {json.dumps(value)}" for key, value in (_SETTINGS | own).items()]
        project = (ROOT / "pyproject.toml").read_text("utf8")
        (self.folder / "pyproject.toml").write_text(f"{project}\n[tool.mutmut]\n" + "\n".join(lines) + "\n", "utf8")

    @contextlib.contextmanager
    def configured(self) -> Iterator[None]:
        """Let mutmut's functions read this folder's configuration, which they look for where the process stands."""
        from mutmut.configuration import reset_config

        with contextlib.chdir(self.folder):
            reset_config()
            yield

    def run(self, mutants: Sequence[str]) -> None:
        """Run these mutants one after another; mutmut ends with an error where a test fails without any mutant."""
        command = [str(Path(sys.executable).with_name("mutmut")), "run", "--max-children", "1", *mutants]
        environment = os.environ | {"PYTHONPATH": str(self.folder / "mutants"), "MALLOC_ARENA_MAX": "2"}
        with (self.folder / "mutmut.log").open("w", encoding="utf8") as log:
            done = subprocess.run(command, cwd=self.folder, env=environment, stdout=log, stderr=log, check=False)
        if done.returncode:
            tail = (self.folder / "mutmut.log").read_text("utf8")[-3000:]
            raise RuntimeError(f"mutmut ended with {done.returncode}; the end of its log is:\n{tail}")

    def outcomes(self, files: Sequence[str]) -> dict[str, str]:
        """Outcome of each mutant that ran: its name → `killed`, `timeout`, `survived` and the like."""
        from mutmut.stats import status_by_exit_code

        rows: dict[str, int | None] = {}
        for file in files:
            meta = self.folder / "mutants" / f"{import_path(file)}.meta"
            rows |= json.loads(meta.read_text("utf8"))["exit_code_by_key"]
        return {name: status_by_exit_code[code] for name, code in rows.items() if code is not None}
