"""Store of head plans: `heads/<model>/<name>.json` under folders, found by name or digest, also while serving.

A plan that an experiment stores is available to the next request, without a restart. Knows files; knows no method.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping
from pathlib import Path

from shared.errors import Conflict, InvalidOption
from shared.lm.head_plan import HeadPlan

__all__ = ["PLAN_NAME", "HeadPlanStore", "save_plan"]

PLAN_NAME = r"^[a-z0-9][a-z0-9._-]{0,63}$"
"""Pattern of plan names."""

_DIGEST = re.compile(r"[0-9a-f]{64}")
_Stamp = tuple[Path, int, int]


class HeadPlanStore(Mapping[str, HeadPlan]):
    """Head plans of one model by name, also found by digest. Later folders win.

    Files are listed at every access and read again when they changed, so the mapping is never stale. Thread-safe.
    """

    def __init__(self, model: str, *folders: Path) -> None:
        self._folders = [_model_folder(folder, model) for folder in folders]
        self._cache: dict[str, tuple[_Stamp, HeadPlan]] = {}

    def __getitem__(self, name: str) -> HeadPlan:
        """Return the plan of a name or digest.

        Raises:
            KeyError: There is none.
            Malformed: The file is no plan.
        """
        files = self._files()
        if name in files:
            return self._plan(name, files[name])
        if _DIGEST.fullmatch(name):
            for known, file in files.items():
                if (plan := self._plan(known, file)).digest == name:
                    return plan
        raise KeyError(name)

    def __iter__(self) -> Iterator[str]:
        """Names, in order."""
        return iter(sorted(self._files()))

    def __len__(self) -> int:
        """Number of names."""
        return len(self._files())

    def _files(self) -> dict[str, Path]:
        return {file.stem: file for folder in self._folders for file in sorted(folder.glob("*.json"))}

    def _plan(self, name: str, file: Path) -> HeadPlan:
        facts = file.stat()
        stamp = (file, facts.st_mtime_ns, facts.st_size)
        cached = self._cache.get(name)
        if cached is None or cached[0] != stamp:
            cached = self._cache[name] = (stamp, HeadPlan.read(file))
        return cached[1]


def save_plan(plan: HeadPlan, folder: Path, model: str, name: str) -> Path:
    """Store a plan for a model under a name; storing the same plan again changes nothing.

    Raises:
        InvalidOption: The name can't be a file's.
        Conflict: Another plan has that name.
    """
    if not re.fullmatch(PLAN_NAME, name):
        detail = f"A head plan can't be called {name!r}."
        raise InvalidOption(detail, hint="Use small letters, digits, dots and dashes.", field="name")
    file = _model_folder(folder, model) / f"{name}.json"
    if file.exists():
        if (other := HeadPlan.read(file).digest) != plan.digest:
            detail = f"{model} has another head plan called {name!r} ({other[:12]}…)."
            raise Conflict(detail, hint="Choose another name, or remove that file.", field="name")
        return file
    file.parent.mkdir(parents=True, exist_ok=True)
    draft = file.with_name(f".{name}.{os.getpid()}")
    draft.write_text(plan.text(), "utf-8")
    draft.replace(file)
    return file


def _model_folder(folder: Path, model: str) -> Path:
    """Models are named after files, which may be called anything."""
    return folder / "heads" / (re.sub(r"[^a-z0-9._-]+", "-", model.lower()).strip("-._") or "local")
