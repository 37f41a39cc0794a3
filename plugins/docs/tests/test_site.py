"""The documentation site: whole, with working links, reference pages from the code, versions and a local server."""

import json
import re
import subprocess
import sys

import httpx2
import pytest

from fovea.errors import Fault, InvalidOption
from fovea_docs import reference, site, staging


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    folder = tmp_path_factory.mktemp("site")
    site.build_site(folder, "0.2")
    return folder


def test_the_site_has_every_page_and_its_search_finds_a_setting(built):
    pages = [page for _, names in staging.read_sections(staging.find_checkout()) for page in names]
    assert len(pages) > 100
    for page in pages:
        assert (built / "0.2" / staging.name_page(page)).with_suffix(".html").is_file(), page
    assert "FOVEA_MAX_PIXELS" in (built / "0.2/search.json").read_text("utf8")
    home = (built / "0.2/index.html").read_text("utf8")
    assert re.search(r'href="docs/09-your-own-data.html"', home)
    assert not re.search(r'(src|href)="https?://(?!zensical)[^"]*\.(js|css|woff2?)"', home)


def test_links_between_pages_lead_to_their_place_in_the_site():
    pages = {"README.md", "docs/a.md", "plugins/x/README.md"}
    text = "[a](docs/a.md#b) [x](plugins/x) [code](Makefile) ![p](docs/images/p.png) [out](https://example.org/a.md)"
    assert staging._rewrite(text, "README.md", pages, staging.find_checkout()) == (
        "[a](docs/a.md#b) [x](plugins/x/index.md) code (`Makefile`) ![p](docs/images/p.png) [out](https://example.org/a.md)"
    )
    assert staging._rewrite("[r](../README.md)", "docs/a.md", pages, staging.find_checkout()) == "[r](../index.md)"


@pytest.mark.parametrize("link", ["nowhere.md", "b.md#no-such-heading"])
def test_a_link_that_leads_nowhere_fails_the_build(tmp_path, monkeypatch, link):
    (tmp_path / "docs").mkdir()
    (tmp_path / "README.md").write_text(f"# A\n\n[x]({link})\n")
    (tmp_path / "b.md").write_text("# B\n")
    monkeypatch.setattr(site, "find_checkout", lambda: tmp_path)
    monkeypatch.setattr(site, "read_sections", lambda _: [("All", ["README.md", "b.md"])])
    with pytest.raises(Fault, match="can't be built"):
        site.build_site(tmp_path / "out")


def test_a_page_that_is_in_no_section_is_named(tmp_path, monkeypatch):
    (tmp_path / "README.md").write_text("# A")
    monkeypatch.setattr(staging, "render_reference", dict)
    with pytest.raises(InvalidOption, match=r"docs/01-use.md"):
        staging.read_sections(tmp_path)


def test_reference_pages_follow_the_code():
    pages = reference.render_reference()
    assert "## `fovea judge trust`" in pages["reference/cli.md"]
    assert "--min-area" in pages["reference/cli.md"]
    assert "::: fovea.client.Client" in pages["reference/sdk.md"]
    assert re.search(r"\| 429 \| `RateLimited` \|", pages["reference/errors.md"])


def test_versions_are_listed_newest_first(tmp_path):
    for version in ("0.1", "0.2", "0.1"):
        site._add_version(tmp_path / "versions.json", version)
    listed = json.loads((tmp_path / "versions.json").read_text("utf8"))
    assert [(one["version"], one["aliases"]) for one in listed] == [("0.1", ["latest"]), ("0.2", [])]


def test_the_command_serves_the_site_on_loopback():
    command = [sys.executable, "-m", "fovea", "docs", "--port", "0"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as server:
        try:
            url = re.search(r"http://127\.0\.0\.1:\d+", server.stdout.readline())[0]
            assert "FOVEA_HOST" in httpx2.get(f"{url}/docs/settings.html", timeout=30).text
        finally:
            server.kill()
