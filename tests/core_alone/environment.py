"""An environment without plug-ins: the libraries of this one, linked into a folder."""

import os
import subprocess
import sys
import sysconfig
from pathlib import Path

ROOT = Path(__file__).parents[2]


def link_libraries(folder: Path, *, with_core: bool) -> Path:
    """Link all that is installed here, except plug-ins, into a folder.

    Args:
        folder: The new folder.
        with_core: Whether the core's metadata, with its own entry points, is linked too.
    """
    folder.mkdir()
    for place in Path(sysconfig.get_path("purelib")).iterdir():
        is_core = with_core and place.name.startswith(("fovea_platform-", "fovea_serve-"))
        if is_core or not (place.suffix == ".pth" or place.name.startswith("fovea")):
            (folder / place.name).symlink_to(place)
    return folder


def run_alone(libraries: Path, *words: object, tree: Path = ROOT) -> subprocess.CompletedProcess[str]:
    """Run Python with a tree and these libraries as its whole path: without `site`, no .pth file adds to it."""
    where = {name: value for name, value in os.environ.items() if not name.startswith(("FOVEA_", "PYTHON"))}
    where |= {"PYTHONPATH": os.pathsep.join((str(tree), str(libraries))), "COLUMNS": "100", "NO_COLOR": "1"}
    return subprocess.run(
        [sys.executable, "-S", *map(str, words)], cwd=tree, env=where, capture_output=True, text=True, check=False
    )
