"""Texts of `--help`, word for word, and plug-in verbs: named without being loaded, loaded when invoked."""

import sys
from importlib import metadata
from importlib.metadata import EntryPoint

import pytest

from fovea.cli import plugins, source_handlers
from tests.command import help_runner

PLUGIN = '''"""A module that is heavy to import."""
import sys
import typer
sys.modules["plugin_was_loaded"] = sys
{imports}

def dig(depth: int = 1, fail: bool = False) -> None:
    """Dig a hole.

    As deep as wanted.
    """
    typer.echo(f"dug {{depth}}")

from fovea.cli.common_options import Connection

app = typer.Typer(help="Several verbs.")

@app.command()
def one(*, gateway: Connection) -> None:
    """The first."""
    typer.echo(f"one {{gateway.url}}")

@app.command()
def two() -> None:
    """The second."""
'''


@pytest.fixture
def fovea(monkeypatch, capfdbinary):
    return help_runner(monkeypatch, capfdbinary)


@pytest.fixture
def plug_in(monkeypatch, tmp_path):
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "plugin_was_loaded", raising=False)

    def install(*points, imports=""):
        (tmp_path / "hole_digger").mkdir(exist_ok=True)
        (tmp_path / "hole_digger/__init__.py").write_text("")
        (tmp_path / "hole_digger/verbs.py").write_text(PLUGIN.format(imports=imports))
        made = [EntryPoint(name, value, plugins.GROUP) for name, value in points]
        monkeypatch.setattr(plugins, "entries", lambda group: made if group == plugins.GROUP else [])
        monkeypatch.setattr(source_handlers, "entries", lambda *_: [])
        for name in [name for name in sys.modules if name.startswith("hole_digger")]:
            monkeypatch.delitem(sys.modules, name)

    return install


JOBS = [f"jobs {verb}" for verb in ("list", "get", "watch", "cancel", "retry", "result")]
JUDGED = ("pair", "batch", "agreement", "ensemble", "templates", "calibrate")
VERBS = ["", "models", "segment", "chat", "run", "jobs", *JOBS, "judge", *(f"judge {verb}" for verb in JUDGED)]


@pytest.mark.parametrize("words", VERBS, ids=lambda words: words or "fovea")
def test_help_says_what_it_said(fovea, plug_in, snapshot, words):
    plug_in()
    code, out, err = fovea(*words.split(), "--help")
    assert (code, err) == (0, "")
    assert out == snapshot


def test_plug_ins_are_named_with_their_first_line_and_not_loaded(fovea, plug_in):
    plug_in(("dig", "hole_digger.verbs:dig"), ("many", "hole_digger.verbs:app"), ("gone", "not_there.at_all:x"))
    code, out, _ = fovea("--help")
    assert code == 0
    panel = out.partition("Plug-ins")[2]
    assert "Dig a hole." in panel
    assert "A module that is heavy to import." in panel
    assert "gone" in panel
    assert "plugin_was_loaded" not in sys.modules


def test_a_plug_in_function_or_app_is_a_command(fovea, plug_in):
    plug_in(("dig", "hole_digger.verbs:dig"))
    assert fovea("dig", "--depth", "3")[:2] == (0, "dug 3")
    assert "--depth" in fovea("dig", "--help")[1]
    assert fovea("dig", "--depth", "x")[0] == 2
    plug_in(("many", "hole_digger.verbs:app"))
    assert fovea("many", "one", "--url", "http://a")[:2] == (0, "one http://a")
    assert "The second." in fovea("many", "--help")[1]
    plug_in(("judge.dig", "hole_digger.verbs:dig"))
    assert fovea("judge", "dig", "--depth", "3")[:2] == (0, "dug 3")
    assert ["Dig a hole." in fovea(*words, "--help")[1] for words in (["judge"], [])] == [True, False]


def test_a_plug_in_whose_library_is_missing_says_what_to_install(fovea, plug_in):
    plug_in(("dig", "hole_digger.verbs:dig [cpu,vision]"), imports="import a_library_nobody_has")
    code, _, err = fovea("dig")
    assert code == 6
    assert "a_library_nobody_has" in err
    assert "pip install 'fovea-platform[cpu,vision]'" in err
    plug_in(("dig", "hole_digger.verbs:dig"), imports="import a_library_nobody_has")
    assert "fovea-platform" not in fovea("dig")[2]


@pytest.mark.parametrize(
    ("attr", "imports", "told"),
    [
        ("dog", "", "has no attribute 'dog'"),
        ("dig", "def broken(:", "SyntaxError"),
        ("dig", "import hole_digger.vebs", "No module named 'hole_digger.vebs'"),
    ],
)
def test_a_broken_plug_in_is_told_of_and_leaves_other_commands_alone(fovea, plug_in, attr, imports, told):
    plug_in(("dig", f"hole_digger.verbs:{attr}"), imports=imports)
    assert fovea("models", "--help")[0] == 0
    code, _, err = fovea("dig")
    assert (code, told in err, "can't be loaded" in err) == (8, True, True)


def test_a_plug_in_cannot_take_the_place_of_a_verb_and_misspelt_ones_are_answered(fovea, plug_in):
    plug_in(("models", "hole_digger.verbs:dig"))
    assert "served models" in fovea("models", "--help")[1]
    plug_in(("dig", "hole_digger.verbs:dig"))
    code, _, err = fovea("segmnt", "x.png")
    assert (code, "segment" in err) == (2, True)
    assert "dig" in fovea("digg")[2]
    assert fovea("--version") == (0, f"fovea {metadata.version('fovea-serve')}", "")


def test_the_shell_completes_commands_and_those_of_plug_ins(fovea, plug_in, monkeypatch):
    plug_in(("many", "hole_digger.verbs:app"))
    monkeypatch.setenv("_FOVEA_COMPLETE", "complete_bash")
    for typed, wanted in (("fovea jo", "jobs"), ("fovea jobs wa", "watch"), ("fovea many o", "one")):
        monkeypatch.setenv("COMP_WORDS", typed)
        monkeypatch.setenv("COMP_CWORD", str(len(typed.split()) - 1))
        assert fovea()[1] == wanted
