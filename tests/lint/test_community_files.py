"""Files that the forge and its visitors read: workflows call make targets that exist, and versions agree."""

import pathlib
import re
import subprocess
import tomllib

import pytest
import yaml

ROOT = pathlib.Path(__file__).parents[2]
TARGETS = set(re.findall(r"^([a-z-]+):.*##", (ROOT / "Makefile").read_text("utf8"), re.MULTILINE))
VERSION = tomllib.loads((ROOT / "pyproject.toml").read_text("utf8"))["project"]["version"]
PAGES = (
    "README.md", "SUPPORT.md", "ROADMAP.md", "CHANGELOG.md", "CONTRIBUTING.md", "SECURITY.md", "docs/01-use.md",
    "docs/status.md",
)  # fmt: skip


@pytest.mark.parametrize("file", sorted(ROOT.glob(".github/workflows/*.yml")), ids=lambda file: file.name)
def test_a_workflow_runs_nothing_but_make_targets(file):
    jobs = yaml.safe_load(file.read_text("utf8"))["jobs"]
    commands = [step["run"] for job in jobs.values() for step in job["steps"] if "run" in step]
    assert commands
    for command in commands:
        program, target, *_ = command.split()
        assert program == "make"
        assert target in TARGETS


def test_pre_commit_hooks_run_modules_that_exist():
    hooks = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text("utf8"))["repos"][0]["hooks"]
    modules = [word for hook in hooks for word in hook["entry"].split() if word.startswith("tests.")]
    assert modules
    for module in modules:
        assert (ROOT / f"{module.replace('.', '/')}.py").exists(), module


@pytest.mark.parametrize("file", sorted(ROOT.glob(".github/ISSUE_TEMPLATE/[!c]*.yml")), ids=lambda file: file.name)
def test_an_issue_template_asks_for_something(file):
    form = yaml.safe_load(file.read_text("utf8"))
    assert form["name"]
    assert any(field.get("validations", {}).get("required") for field in form["body"])


def test_the_citation_is_of_this_version():
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text("utf8"))
    assert (str(citation["version"]), citation["license"]) == (VERSION, "Apache-2.0")


def test_the_readme_is_short():
    assert len((ROOT / "README.md").read_text("utf8").splitlines()) <= 120


@pytest.mark.parametrize("page", PAGES)
def test_links_of_the_first_pages_lead_somewhere(page):
    file = ROOT / page
    links = re.findall(r"\]\((?!https?:|#)([^)#\s]+)", file.read_text("utf8"))
    assert links
    assert [link for link in links if not (file.parent / link).exists()] == []


def test_no_file_has_the_marks_of_a_merge():
    marks = subprocess.run(
        ["git", "grep", "-nIE", "^(<{7}|>{7}) "], cwd=ROOT, capture_output=True, text=True, check=False
    ).stdout
    assert marks == ""
