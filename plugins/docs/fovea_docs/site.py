"""Site: builds the staged pages with Zensical into a static folder, strictly: a broken link is an error."""

import json
import re
import shutil
import subprocess
import sys
import tempfile
from importlib.resources import files
from pathlib import Path

from fovea.errors import Fault
from fovea_docs.staging import Sections, find_checkout, name_page, read_sections, stage


def build_site(target: Path, version: str | None = None) -> None:
    """Build the site into a folder.

    Args:
        target: Folder of the site; with `version`, the folder that holds one folder for each version.
        version: Name of this version, for example 0.2; the site's menu offers those of `versions.json`.

    Raises Fault: the generator refused a page; the detail is its output.
    """
    root = find_checkout()
    sections = read_sections(root)
    with tempfile.TemporaryDirectory(prefix="fovea-docs-") as folder:
        staged = Path(folder)
        stage(root, staged / "docs", sections)
        (staged / "zensical.toml").write_text(_configure(sections), "utf8")
        command = [sys.executable, "-m", "zensical", "build", "--strict", "--clean"]
        done = subprocess.run(  # noqa: S603  # our own interpreter
            command, cwd=staged, capture_output=True, text=True, check=False
        )
        if done.returncode != 0:
            said = re.sub(r"\x1b\[[0-9;]*m", "", done.stdout + done.stderr)  # it writes in colours, to a pipe, too
            raise Fault(f"The site can't be built:\n{said}")
        shutil.copytree(staged / "site", target / version if version else target, dirs_exist_ok=True)
    if version:
        _add_version(target / "versions.json", version)


def _configure(sections: Sections) -> str:
    """The generator's settings with the navigation."""
    settings = files("fovea_docs").joinpath("zensical.toml").read_text("utf8")
    entries = [(json.dumps(title), json.dumps([name_page(page) for page in pages])) for title, pages in sections]
    nav = "\n".join(f"  {{ {title} = {pages} }}," for title, pages in entries)
    return settings.replace("[project]\n", f"[project]\nnav = [\n{nav}\n]\n", 1)


def _add_version(file: Path, version: str) -> None:
    """Put a version first in the list that the site's menu reads (the format of mike)."""
    known = json.loads(file.read_text("utf8")) if file.exists() else []
    others = [{**one, "aliases": []} for one in known if one["version"] != version]
    file.write_text(json.dumps([{"version": version, "title": version, "aliases": ["latest"]}, *others]), "utf8")
