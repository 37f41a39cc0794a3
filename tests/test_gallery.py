"""The console's gallery shows a result per user of the docs' page: its commands are blocks there, as its pictures."""

import re
from pathlib import Path

import pytest

from loadtests.gallery.__main__ import PICTURES, read_blocks
from services.gateway.console.gallery import GALLERY

PAGE = Path(__file__).parents[1] / "docs/gallery.md"


def test_each_user_has_a_result():
    assert [entry.user for entry in GALLERY] == ["Hospital", "Road authority", "Search team", "Researcher"]
    assert {entry.command for entry in GALLERY} <= {block.strip() for block in read_blocks()}


@pytest.mark.parametrize("entry", GALLERY, ids=lambda entry: entry.user)
def test_its_picture_and_its_words_are_those_of_the_page(entry):
    assert (PICTURES / entry.picture).stat().st_size > 1000
    section = next(part for part in PAGE.read_text("utf8").split("\n## ") if part.startswith(entry.user))
    assert f"[{entry.alt}](../services/gateway/console/static/gallery/{entry.picture})" in section
    assert re.search(rf"\*\*{entry.origin}\*\*", section, re.IGNORECASE)
