"""The documentation site: whole, with working links, reference pages from the code, versions and a local server."""

import json
import re
import shlex
import subprocess
import sys
from pathlib import Path

import httpx2
import pytest

from fovea.errors import Fault, InvalidOption
from fovea_docs import reference, site, staging
from fovea_docs.model_pages import render_page
from shared.serving.tests.toys import Echo, Eye


@pytest.fixture(scope="module")
def served():
    """URL of the site that the command serves."""
    command = [sys.executable, "-m", "fovea", "docs", "--port", "0"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as server:
        try:
            yield re.search(r"http://127\.0\.0\.1:\d+", server.stdout.readline())[0]
        finally:
            server.kill()


def test_the_command_serves_every_page_and_a_search_that_finds_a_setting(served):
    pages = [page for _, names in staging.read_sections(staging.find_checkout()) for page in names]
    assert len(pages) > 100
    with httpx2.Client(base_url=served, timeout=30) as client:
        found = {page: client.head(f"/{Path(staging.name_page(page)).with_suffix('.html')}") for page in pages}
        assert [page for page, answer in found.items() if answer.status_code != 200] == []
        assert "FOVEA_MAX_PIXELS" in client.get("/search.json").text
        assert "FOVEA_HOST" in client.get("/docs/settings.html").text
        home = client.get("/index.html").text
    assert re.search(r'href="docs/09-your-own-data.html"', home)
    assert not re.search(r'(src|href)="https?://(?!zensical)[^"]*\.(js|css|woff2?)"', home)


def test_links_between_pages_lead_to_their_place_in_the_site_and_a_page_in_no_section_is_named(tmp_path, monkeypatch):
    pages = {"README.md", "docs/a.md", "plugins/x/README.md"}
    text = "[a](docs/a.md#b) [x](plugins/x) [code](Makefile) ![p](docs/images/p.png) [out](https://example.org/a.md)"
    links = "[a](docs/a.md#b) [x](plugins/x/index.md) code (`Makefile`) ![p](docs/images/p.png)"
    wanted = f"{links} [out](https://example.org/a.md)"
    assert staging._rewrite(text, "README.md", pages, staging.find_checkout()) == wanted
    assert staging._rewrite("[r](../README.md)", "docs/a.md", pages, staging.find_checkout()) == "[r](../index.md)"
    (tmp_path / "README.md").write_text("# A")
    monkeypatch.setattr(staging, "render_reference", dict)
    with pytest.raises(InvalidOption, match=r"docs/01-use.md"):
        staging.read_sections(tmp_path)


def test_links_that_lead_nowhere_fail_the_build(tmp_path, monkeypatch):
    (tmp_path / "README.md").write_text("# A\n\n[x](nowhere.md) [y](b.md#no-such-heading)\n")
    (tmp_path / "b.md").write_text("# B\n")
    monkeypatch.setattr(site, "find_checkout", lambda: tmp_path)
    monkeypatch.setattr(site, "read_sections", lambda _: [("All", ["README.md", "b.md"])])
    with pytest.raises(Fault, match=r"can't be built(?s:.*)nowhere(?s:.*)no-such-heading"):
        site.build_site(tmp_path / "out")


def test_reference_pages_follow_the_code():
    pages = reference.render_reference()
    assert "## `fovea judge trust`" in pages["reference/cli.md"]
    assert "--min-area" in pages["reference/cli.md"]
    assert "::: fovea.client.Client" in pages["reference/sdk.md"]
    assert "### `client.segment(image, *, model=None, **options)`" in pages["reference/sdk.md"]
    assert "### `client.jobs.list(limit=50, *, dead=False, after=None)`" in pages["reference/sdk.md"]
    assert re.search(r"\| 429 \| `RateLimited` \|", pages["reference/errors.md"])


def test_versions_stand_beside_each_other_and_are_listed_newest_first(tmp_path, monkeypatch):
    (tmp_path / "README.md").write_text("# A\n")
    monkeypatch.setattr(site, "find_checkout", lambda: tmp_path)
    monkeypatch.setattr(site, "read_sections", lambda _: [("All", ["README.md"])])
    site._add_version(tmp_path / "versions.json", "0.1")
    site.build_site(tmp_path, "0.2")
    assert "<h1" in (tmp_path / "0.2" / "index.html").read_text("utf8")
    site._add_version(tmp_path / "versions.json", "0.1")
    listed = json.loads((tmp_path / "versions.json").read_text("utf8"))
    assert [(one["version"], one["aliases"]) for one in listed] == [("0.1", ["latest"]), ("0.2", [])]


def called(text):
    return [shlex.split(line) for line in text.split("```bash\n")[1].split("```")[0].replace("\\\n", "").splitlines()]


def test_pictures_are_sent_as_a_form_and_anything_else_as_the_cards_example_whose_quotes_survive_the_shell():
    plain, rendered = called(render_page("toy", Eye, Eye.card))
    assert plain == ["curl", "http://127.0.0.1:8080/v1/segment", "-F", "image=@picture.jpg", "-F", "model=toy/eye"]
    assert rendered[: len(plain)] == plain
    assert rendered[-1].startswith("out.")
    [words] = called(render_page("toy", Echo, Echo.card))
    assert words[:2] == ["curl", "http://127.0.0.1:8080/v1/echo"]
    assert json.loads(words[-1]) == {"model": "toy/echo", **Echo.card.example}
    kind = type("Quoted", (Echo,), {"card": Echo.card.model_copy(update={"example": {"text": "it's"}})})
    [words] = called(render_page("toy", kind, kind.card))
    assert json.loads(words[-1])["text"] == "it's"
