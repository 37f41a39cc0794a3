"""Files that people read: those of the community, API reference, promises of security, provenance, mutation scores."""

import fnmatch
import importlib
import pathlib
import re
import subprocess

import jsonschema
import pytest
import yaml

from services.gateway.app import build_gateway
from services.gateway.http.openapi import join_documents
from services.gateway.http.reference_groups import GROUPS
from shared.registry.discovery import services_with_models
from shared.settings import Settings
from tests.mutation.results import TARGET, load_equivalents, read_results, score
from tests.mutation.workspace import load_modules

ROOT = pathlib.Path(__file__).parents[2]
TARGETS = set(re.findall(r"^([a-z-]+):.*##", (ROOT / "Makefile").read_text("utf8"), re.MULTILINE))
PAGES = (
    "README.md", "SUPPORT.md", "ROADMAP.md", "CHANGELOG.md", "CONTRIBUTING.md", "SECURITY.md", "docs/01-use.md",
    "docs/status.md",
)  # fmt: skip


@pytest.mark.parametrize("file", sorted(ROOT.glob(".github/workflows/*.yml")), ids=lambda file: file.name)
def test_a_workflow_runs_nothing_but_make_targets(file):
    jobs = yaml.safe_load(file.read_text("utf8"))["jobs"]
    commands = [step["run"].split() for job in jobs.values() for step in job["steps"] if "run" in step]
    assert commands
    assert {(program, target in TARGETS) for program, target, *_ in commands} == {("make", True)}


def test_pre_commit_hooks_run_modules_that_exist_and_the_readme_is_short():
    hooks = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text("utf8"))["repos"][0]["hooks"]
    modules = [word for hook in hooks for word in hook["entry"].split() if word.startswith("tests.")]
    assert modules
    assert all((ROOT / f"{module.replace('.', '/')}.py").exists() for module in modules), modules
    assert len((ROOT / "README.md").read_text("utf8").splitlines()) <= 120


@pytest.mark.parametrize("page", PAGES)
def test_links_of_the_first_pages_lead_somewhere(page):
    file = ROOT / page
    links = re.findall(r"\]\((?!https?:|#)([^)#\s]+)", file.read_text("utf8"))
    assert links
    assert [link for link in links if not (file.parent / link).exists()] == []


def test_no_file_has_the_marks_of_a_merge():
    command = ["git", "grep", "-nIE", "^(<{7}|>{7}) "]
    assert subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False).stdout == ""


WITHOUT_ANSWER = {"GET /health", "GET /ping", "POST /v1/dicomweb/studies"}
"""Their answers have no content here."""


@pytest.fixture
def document():
    """The joined document of the whole product, with keys."""
    rooms = {name: f"services.{name.replace('-', '_')}.app" for name in services_with_models()}
    documents = {name: importlib.import_module(room).app.openapi() for name, room in rooms.items()}
    return join_documents(build_gateway(Settings(_env_file=None)).openapi(), documents, keys=True)


def list_operations(document):
    """Operations by name (`POST /v1/segment`)."""
    items = ((path, method, one) for path, item in document["paths"].items() for method, one in item.items())
    return [(f"{m.upper()} {path}", one) for path, m, one in items if isinstance(one, dict) and "responses" in one]


def check_value(document, schema, value):
    jsonschema.Draft202012Validator({**schema, "components": document["components"]}).validate(value)


def test_an_operation_says_what_it_does_where_it_belongs_and_has_an_example_that_fits_its_schemas(document):
    for label, operation in list_operations(document):
        assert len(operation["summary"].split()) > 1, label
        assert operation["tags"][0] in {group.title for group in GROUPS}, label
        undescribed = [p["name"] for p in operation.get("parameters", ()) if len(p.get("description", "")) < 5]
        assert undescribed == [], label
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


def test_each_promise_names_tests_that_exist():
    rows = ROW.finditer((ROOT / "SECURITY.md").read_text("utf8"))
    promises = {row["promise"]: re.findall(r"`(test_\w+)`", row["tests"]) for row in rows}
    promises = {promise: named for promise, named in promises.items() if promise not in {"promise", "---"}}
    files = subprocess.check_output(["git", "ls-files", "*/test*.py", "test*.py"], cwd=ROOT, text=True).splitlines()
    texts = [(ROOT / name).read_text("utf8") for name in files if (ROOT / name).exists()]
    tests = {one for text in texts for one in re.findall(r"^\s*(?:async )?def (test_\w+)", text, re.MULTILINE)}
    assert len(promises) > 30
    assert {promise for promise, named in promises.items() if not named} == set(), "promises without a test"
    assert {name for named in promises.values() for name in named} - tests == set(), "tests that are not there"


def test_pages_name_every_file_of_golden_data():
    tops = [ROOT / name for name in ("fovea", "plugins", "services", "shared")]
    folders = {page.parent for top in tops for page in top.rglob("golden/**/*.*")}
    folders = {folder for folder in folders if folder.name in {"golden", "ruler"}}
    assert len(folders) >= 12
    for folder in folders:
        names = ["README.md", *re.findall(r"`([^`\s]+)`", (folder / "README.md").read_text("utf8"))]
        files = [file.name for file in folder.iterdir() if file.is_file()]
        assert [file for file in files if not any(fnmatch.fnmatch(file, name) for name in names)] == [], folder


def test_scores_of_mutation_meet_the_target_and_did_not_fall_and_files_and_tests_of_its_modules_exist():
    modules = load_modules()
    assert len(modules) == 10
    for name, module in modules.items():
        row = read_results()[name]
        assert row["now"]["sampled"] >= 120
        assert score(row["now"]) >= max(TARGET, score(row["before"])), name
        gone = [path for path in (*module.files, *module.tests) if not (ROOT / path.partition("::")[0]).exists()]
        assert gone == [], name


def test_equivalent_mutants_are_of_lines_that_are_still_there():
    for row in load_equivalents():
        lines = {line.strip() for line in (ROOT / row["file"]).read_text("utf8").splitlines()}
        assert set(row["was"].splitlines()) <= lines, row
        assert row["why"]
