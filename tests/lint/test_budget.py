"""A package that grows, a new one and an import of a plug-in are found; writing lowers and never raises."""

import tomllib

import pytest

from tests.lint import budget


@pytest.fixture
def tree(tmp_path):
    files = {"fovea/cli/a.py": 2, "services/eye/a.py": 3, "services/eye/tests/test_a.py": 9, "shared/settings.py": 1}
    for name, lines in {**files, "plugins/more/fovea_more/a.py": 4, "plugins/more/tests/test_b.py": 9}.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("x = 1\n" * lines)
    assert budget.main(tmp_path, write=True) == 0
    return tmp_path


def read(tree):
    return tomllib.loads((tree / budget.FILE).read_text())


def test_lines_are_counted_without_tests_and_a_package_that_grows_or_is_new_is_found(tree, capsys):
    assert read(tree) == {"core": {"fovea": 2, "services.eye": 3, "shared": 1}, "plugins": {"more": 4}}
    (tree / "services/eye/b.py").write_text("y = 1\n")
    assert budget.main(tree) == 1
    assert "services.eye has 4 lines and may have 3" in capsys.readouterr().out
    assert budget.main(tree, write=True) == 1
    assert read(tree)["core"]["services.eye"] == 3
    (tree / "services/eye/a.py").write_text("")  # what shrinks loses what it had
    assert budget.main(tree, write=True) == 0
    assert read(tree)["core"]["services.eye"] == 1
    (tree / "shared/new").mkdir()
    (tree / "shared/new/a.py").write_text("x = 1\n")
    assert budget.main(tree) == 1


@pytest.mark.parametrize("line", ["import fovea_more\n", "from fovea_more.a import x\n", "import os, fovea_more.a\n"])
def test_an_import_of_a_plug_in_by_the_core_is_found(tree, line, capsys):
    (tree / "shared/settings.py").write_text(line)
    assert budget.main(tree) == 1
    assert "shared/settings.py:1: the core imports the plug-in fovea_more" in capsys.readouterr().out
