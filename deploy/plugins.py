"""Which plug-ins an image needs: those that bring something to its service, as their entry points say.

    python deploy/plugins.py folders SERVICE          their folders, for `pip install --no-deps`
    python deploy/plugins.py requirements SERVICE     the libraries that they need there, next to Fovea

The gateway needs every page, and the libraries only of plug-ins that bring routes or traffic policies to it. Images
have no training code, so plug-ins with recipes stay out. Runs with Python's own library, because it runs before
anything is installed.
"""

import re
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
GROUPS = ("fovea.models", "fovea.routes")
"""Entry-point groups whose names begin with a service."""


def iter_projects(root: Path) -> Iterator[tuple[Path, dict[str, Any]]]:
    """Folder and `[project]` of each plug-in but the example."""
    for file in sorted(root.glob("plugins/*/pyproject.toml")):
        if file.parent.name != "example":
            yield file.parent, tomllib.loads(file.read_text("utf8"))["project"]


def is_called(project: dict[str, Any], service: str) -> bool:
    """Whether a service calls the plug-in's code."""
    points = project.get("entry-points", {})
    if "fovea.recipes" in points:
        return False
    names = {name.partition(".")[0] for group in GROUPS for name in points.get(group, {})}
    return service in names or (service == "gateway" and "fovea.traffic" in points)


def is_needed(project: dict[str, Any], service: str) -> bool:
    """Whether the image of a service has the plug-in."""
    has_page = "fovea.pages" in project.get("entry-points", {})
    return is_called(project, service) or (service == "gateway" and has_page)


def list_folders(service: str, root: Path = ROOT) -> list[str]:
    """Folders of the plug-ins that an image has, as pip takes them."""
    return [f"./{folder.relative_to(root)}" for folder, project in iter_projects(root) if is_needed(project, service)]


def list_requirements(service: str, root: Path = ROOT) -> list[str]:
    """Requirements of plug-ins in an image, without Fovea and other plug-ins."""
    lines = {
        line
        for _, project in iter_projects(root)
        if is_called(project, service)
        for line in project.get("dependencies", ())
        if re.match(r"fovea\b", line) is None
    }
    return sorted(lines)


if __name__ == "__main__":
    match sys.argv[1:]:
        case ["folders", name]:
            found = list_folders(name)
        case ["requirements", name]:
            found = list_requirements(name)
        case _:
            sys.exit(__doc__)
    sys.stdout.write("".join(f"{line}\n" for line in found))
