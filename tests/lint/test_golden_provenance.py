"""Each folder of golden data says how its files were made, from which source and version."""

import fnmatch
import pathlib
import re

import pytest

ROOT = pathlib.Path(__file__).parents[2]
FOLDERS = sorted(
    page.parent for top in ("fovea", "plugins", "services", "shared") for page in (ROOT / top).rglob("golden/**/*.*")
    if page.parent.name in ("golden", "ruler")
)  # fmt: skip


@pytest.mark.parametrize("folder", sorted(set(FOLDERS)), ids=lambda folder: str(folder.relative_to(ROOT)))
def test_a_page_names_every_file_of_golden_data(folder):
    names = re.findall(r"`([^`\s]+)`", (folder / "README.md").read_text("utf8"))
    files = [file.name for file in folder.iterdir() if file.is_file() and file.name != "README.md"]
    assert [file for file in files if not any(fnmatch.fnmatch(file, name) for name in names)] == []


def test_no_folder_is_overlooked():
    assert len(set(FOLDERS)) >= 12
