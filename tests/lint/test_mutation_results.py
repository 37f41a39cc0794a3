"""The published mutation scores: of ten modules that exist, above the target, and not fallen."""

import pytest

from tests.mutation.results import TARGET, load_equivalents, read_results, score
from tests.mutation.workspace import ROOT, load_modules


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
