"""Files that people read: those of the community, API reference, promises of security, provenance, mutation scores."""

import fnmatch
import pathlib
import re
import subprocess
import tomllib

import pytest
import yaml

from services.gateway.http.reference_groups import GROUPS
from tests.mutation.results import TARGET, load_equivalents, read_results, score
from tests.mutation.workspace import load_modules
from tests.reference.recorder import build_apps, build_document, check_value, list_operations

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


def test_the_citation_is_of_this_version_and_the_readme_short():
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text("utf8"))
    assert (str(citation["version"]), citation["license"]) == (VERSION, "Apache-2.0")
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


WITHOUT_ANSWER = {"GET /health", "GET /ping", "POST /v1/dicomweb/studies"}
"""Their answers have no content here."""


@pytest.fixture(scope="module")
def document():
    return build_document(build_apps())


def test_an_operation_says_what_it_does_and_where_it_belongs(document):
    for label, operation in list_operations(document):
        assert len(operation["summary"].split()) > 1, label
        assert operation["tags"][0] in {group.title for group in GROUPS}, label
        undescribed = [p["name"] for p in operation.get("parameters", ()) if len(p.get("description", "")) < 5]
        assert undescribed == [], label


def test_an_operation_has_an_example_that_fits_its_schemas(document):
    for label, operation in list_operations(document):
        for parameter in operation.get("parameters", ()):
            if parameter["in"] == "path":
                check_value(document, parameter["schema"], parameter["example"])
        bodies = [operation.get("requestBody", {}).get("content", {})]
        answers = [answer.get("content", {}) for answer in operation["responses"].values()]
        for contents in (bodies, [] if label in WITHOUT_ANSWER else answers):
            media = [one for content in contents for one in content.values()]
            examples = [one for one in media if "example" in one]
            assert examples or not media, label
            for one in examples:
                check_value(document, one.get("schema", {}), one["example"])


ROW = re.compile(r"^\| (?P<promise>[^|]+) \| (?P<tests>[^|]+) \|$", re.MULTILINE)


def list_promises() -> dict[str, list[str]]:
    text = (ROOT / "SECURITY.md").read_text("utf8")
    rows = {row["promise"]: re.findall(r"`(test_\w+)`", row["tests"]) for row in ROW.finditer(text)}
    return {promise: tests for promise, tests in rows.items() if promise not in {"promise", "---"}}


def list_tests() -> set[str]:
    files = subprocess.run(["git", "ls-files", "*.py"], cwd=ROOT, capture_output=True, text=True, check=True)
    found: set[str] = set()
    for name in files.stdout.splitlines():
        if "/test" in f"/{name}":
            found |= set(re.findall(r"^\s*(?:async )?def (test_\w+)", (ROOT / name).read_text("utf8"), re.MULTILINE))
    return found


def test_each_promise_names_tests_that_exist():
    promises, tests = list_promises(), list_tests()
    assert len(promises) > 30
    assert {promise for promise, named in promises.items() if not named} == set(), "promises without a test"
    assert {name for named in promises.values() for name in named} - tests == set(), "tests that are not there"


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


def test_files_and_tests_of_the_modules_exist():
    modules = load_modules()
    assert len(modules) == 10
    for module in modules.values():
        for path in (*module.files, *module.tests):
            assert (ROOT / path.partition("::")[0]).exists(), f"{module.name}: {path}"


@pytest.mark.parametrize("name", load_modules())
def test_scores_meet_the_target_and_did_not_fall(name):
    row = read_results()[name]
    assert row["now"]["sampled"] >= 120
    assert score(row["now"]) >= TARGET
    assert score(row["now"]) >= score(row["before"])


def test_equivalent_mutants_are_of_lines_that_are_still_there():
    for row in load_equivalents():
        lines = {line.strip() for line in (ROOT / row["file"]).read_text("utf8").splitlines()}
        assert set(row["was"].splitlines()) <= lines, row
        assert row["why"]
