"""Texts of `--help`, options from schemas and wire types, plug-in verbs, and what the screen writes."""

import json
import sys
from contextlib import suppress
from dataclasses import dataclass
from importlib import metadata
from importlib.metadata import EntryPoint
from typing import Annotated, Any, Literal

import pytest
import typer
from hypothesis import given
from hypothesis import strategies as st
from pydantic import BaseModel, Field
from typer.testing import CliRunner

from fovea.api.image import ImageBytes
from fovea.api.mask import SegmentIn
from fovea.api.text import ChatRequest
from fovea.cli import plugins, source_handlers
from fovea.cli.commands import run
from fovea.cli.common_options import GatewayOptions
from fovea.cli.input_files import find_images
from fovea.cli.option_groups import add_request_options, expand_options
from fovea.cli.output import Screen
from fovea.cli.schema_options import describe_options, is_picture, list_picture_fields, parse_options, split_arguments
from fovea.errors import InvalidOption, NotFound, TooLarge
from tests.command import help_runner


class Mixed(BaseModel):
    """One option of each kind."""

    model: str | None = None
    image: ImageBytes
    others: list[ImageBytes] | None = None
    threshold: float = Field(0.5, ge=0, le=1, description="Where to cut.")
    top_k: int | None = Field(None, ge=1)
    keep: bool = False
    mode: Literal["fast", "slow"] = Field("fast", description="How.")
    forms: tuple[str, ...] = ("mask", "box")
    words: list[str] | None = None
    point: dict[str, int] | None = None
    prompt: str | None = None
    texts: str | list[str] | list[int] | None = None


SCHEMA = Mixed.model_json_schema()


@pytest.mark.parametrize(("line", "plain", "texts"), [
    ("a.png b.png", ["a.png", "b.png"], []),
    ("a.png --threshold 0.4 b.png", ["a.png", "b.png"], [("threshold", "0.4")]),
    ("--threshold=0.4 a.png", ["a.png"], [("threshold", "0.4")]), ("--keep a.png", ["a.png"], [("keep", "true")]),
    ("--no-keep a.png", ["a.png"], [("keep", "false")]), ("--top-k 3 -", ["-"], [("top_k", "3")]),
    ("--prompt a=b", [], [("prompt", "a=b")]), ("--prompt=a=b", [], [("prompt", "a=b")]),
    ("a.png --unknown", ["a.png"], [("unknown", "true")]), ("--threshold -0.5", [], [("threshold", "-0.5")]),
    ("--words a --words b", [], [("words", "a"), ("words", "b")]),
])  # fmt: skip
def test_words_and_options_are_told_apart(line, plain, texts):
    assert split_arguments(line.split(), SCHEMA) == (plain, texts)


@given(st.lists(st.text(max_size=8), max_size=8))
def test_no_command_line_breaks_the_reader(words):
    with suppress(InvalidOption):  # no value for the last
        plain, texts = split_arguments(words, SCHEMA)
        assert len(plain) + len(texts) <= len(words)


def test_a_text_becomes_what_the_schema_asks_for_a_list_entry_by_entry_and_an_unknown_option_is_refused():
    for name, text, value in (
        ("threshold", "0.4", 0.4), ("top_k", "3", 3), ("keep", "true", True), ("mode", "slow", "slow"),
        ("words", "a, b", ["a", "b"]), ("words", '["a, b"]', ["a, b"]), ("point", '{"x": 1}', {"x": 1}),
        ("prompt", "3", "3"), ("prompt", "null", "null"), ("threshold", "high", "high"), ("top_k", "null", None),
        ("texts", "Once, there", ["Once, there"]), ("texts", "3", ["3"]), ("texts", ", ", [", "]),
        ("texts", "[3]", [3]), ("texts", '["a", "b, c"]', ["a", "b, c"]), ("prompt", "[" * 9999, "[" * 9999),
        ("words", "3", ["3"]), ("words", "true", ["true"]), ("words", '"a"', ["a"]), ("words", "a", ["a"]),
    ):  # fmt: skip
        assert parse_options([(name, text)], SCHEMA) == {name: value}
    pairs = [("words", "a"), ("threshold", "0.1"), ("words", "b, c"), ("threshold", "0.2"), ("words", '["d, e"]')]
    assert parse_options(pairs, SCHEMA) == {"words": ["a", "b", "c", "d, e"], "threshold": 0.2}
    with pytest.raises(InvalidOption, match="--prompt has no value"):
        split_arguments(["a.png", "--prompt"], SCHEMA)
    with pytest.raises(InvalidOption, match="--thresold", check=lambda e: e.hint == "Did you mean --threshold?"):
        parse_options([("thresold", "1")], SCHEMA)
    with pytest.raises(InvalidOption, check=lambda e: ("--top-k" in e.hint, "--image" in e.hint) == (True, False)):
        parse_options([("zzz", "1")], SCHEMA)
    assert parse_options([("anything", "3")], {}) == {"anything": 3}
    for schema, fields in ((SCHEMA, ["image", "others"]), (SegmentIn.model_json_schema(), ["image"])):
        assert list_picture_fields(schema) == fields
    assert (list_picture_fields(ChatRequest.model_json_schema()), is_picture({"type": "string"}, {})) == ([], False)


@dataclass(frozen=True)
class Colour:
    """A group of options."""

    shade: Annotated[str, typer.Option("--shade", "-s", help="How dark.")]
    depth: Annotated[int, typer.Option(min=1)] = 2


def test_a_group_s_options_arrive_as_one_and_a_task_s_own_command_runs_it_with_those_of_the_model(monkeypatch):
    seen = []

    @expand_options
    def paint(wall: str, *, colour: Colour, coats: int = 1, gateway: GatewayOptions) -> None:
        seen.append((wall, colour, coats, gateway))

    app = typer.Typer()
    app.command()(paint)
    shown = CliRunner().invoke(app, ["--help"], env={"COLUMNS": "100", "NO_COLOR": "1"}).stdout
    places = [shown.index(f"--{name} ") for name in ("shade", "depth", "coats", "json", "url", "key")]
    assert places == sorted(places)
    assert CliRunner().invoke(app, ["north", "-s", "dark", "--json", "--key", "k"]).exit_code == 0
    assert seen == [("north", Colour("dark", 2), 1, GatewayOptions(key="k", json_lines=True))]
    for words in ([], ["-s", "dark", "--depth", "0"]):
        assert CliRunner().invoke(app, ["north", *words]).exit_code == 2
    app, told = run.make_task_app("anything", "Do it."), []
    monkeypatch.setattr(run, "run", lambda **given: told.append(given))
    assert CliRunner().invoke(app, ["a.npz", "--size", "3", "--model", "m"]).exit_code == 0
    assert (told[0]["task"], told[0]["arguments"], told[0]["model"]) == ("anything", ["a.npz", "--size", "3"], "m")
    assert "Do it." in CliRunner().invoke(app, ["--help"]).stdout


def test_options_are_described_with_choices_and_handed_on_where_given(verb):
    told = dict(describe_options(SCHEMA))
    assert (told["threshold"], told["mode"]) == ("Where to cut. [0.5]", 'How. (fast | slow) ["fast"]')
    assert not {"model", "image", "others"} & told.keys()
    assert verb("x")[:2] == (0, {"word": "x", "loud": False, "options": {}})
    twice = ("--forms", "a", "--forms", "b,c")
    code, called, _ = verb("x", "--loud", "--threshold", "0", "--no-keep", "--mode", "slow", "--top-k", "2", *twice)
    assert (code, called["loud"]) == (0, True)
    assert called["options"] == {"threshold": 0.0, "keep": False, "mode": "slow", "top_k": 2, "forms": "a,b,c"}
    _, _, out = verb("--help")
    for words in ("--threshold", "Where to cut.", "0<=x<=1", "fast|slow", "--keep", "--no-keep", " mask, box "):
        assert words in out
    for words in ("--threshold 1.5", "--threshold x", "--top-k 0", "--mode odd", "--image x"):
        assert verb("x", *words.split())[:2] == (2, {}), "bounds are checked before anything is sent"


@pytest.fixture
def verb():
    called: dict[str, Any] = {}

    def bare(
        word: Annotated[str, typer.Argument()], options: dict[str, Any], loud: Annotated[bool, typer.Option()] = False
    ):
        called.update(word=word, loud=loud, options=options)

    app = typer.Typer()
    app.command()(add_request_options(bare, Mixed, without=frozenset({"image", "others", "model"})))

    def run(*words):
        called.clear()
        ran = CliRunner().invoke(app, list(words))
        return ran.exit_code, dict(called), ran.output

    return run


def test_folders_are_spelled_out_in_order_stems_safe_and_a_name_with_a_bracket_is_first_a_file(tmp_path):
    written = ("a.json", "a.mask.png", "a.reflection.png", "a.comparison.jpg")
    for name in ("b.PNG", "a.jpg", "._a.jpg", "c.txt", "d.tiff", "b.mask.png", *written):
        (tmp_path / name).touch()
    (tmp_path / "deep").mkdir()
    (tmp_path / "deep/e.png").touch()
    names = [source.name.rpartition("/")[2] for source in find_images([str(tmp_path), str(tmp_path / "**/*.png")])]
    assert names == ["a.jpg", "b.PNG", "b.mask.png", "d.tiff", "b.mask.png", "e.png"]  # a command wrote `a.mask.png`
    words = ["x/a.png", "y/a.jpg", "-", "http://h/p/a.png?q=/etc/x", "http://h/", "http://h/a%20b$.png", "z/a b$ü.png"]
    stems = ["a", "a-2", "stdin", "a-3", "picture", "a_20b_", "a b$ü"]
    assert [source.stem for source in find_images(words)] == stems
    assert [source.stem for source in find_images(["coco.jpg", "a.jpg"], ["coco"])] == ["coco-2", "a"]
    assert [source.name for source in find_images([""])] == [""]  # of an unset variable: not the current folder
    (tmp_path / "a[1].png").touch()
    assert [source.stem for source in find_images([str(tmp_path / "a[1].png")])] == ["a[1]"]
    assert find_images([f"{'ü' * 120}\udcff.png"])[0].stem == "ü" * 100
    with pytest.raises(NotFound, match="No file matches"):
        find_images([str(tmp_path / "b[1].png")])


@given(st.lists(st.sampled_from(["a.png", "a-2.png", "b/a.png", "a.jpg"]), max_size=8))
def test_nothing_that_is_written_overwrites_anything_else(names):
    stems = [source.stem for source in find_images(names)]
    assert len(stems) == len(set(stems)) == len(names)


def test_errors_are_one_line_or_one_object_nothing_is_markup_and_a_record_without_a_name_is_refused(capsys):
    error = TooLarge("It has [3] bytes.", hint="Send fewer.", field="image")
    Screen().error(error, about="a[b].png")
    Screen(as_json=True).error(error, about="a[b].png")
    out, err = capsys.readouterr()
    assert err.strip() == "a[b].png: It has [3] bytes. Send fewer."
    told = json.loads(out)
    assert (told["file"], told["error"]["status"], told["error"]["field"]) == ("a[b].png", 413, "image")
    screen = Screen()
    screen.text("[bold]x[/] [/]")
    screen.facts({"[red]name": "[blink]value", "empty": "", "none": None})
    out = capsys.readouterr().out
    for words, is_there in (("[bold]x[/] [/]", True), ("[red]name", True), ("[blink]value", True), ("empty", False)):
        assert (words in out) is is_there, words
    for record in ({"id": "a", "name": "b"}, {"name": "a", "file": "b"}, {"file": "a"}, {"judge": "a", "kappa": 0.1}):
        Screen("name").line(record)
    assert capsys.readouterr().out == "a\n" * 4
    with pytest.raises(InvalidOption, match="no field 'id'"):
        Screen("name").line({"grade": 2})


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
    panel = out.partition("Plug-ins")[2]
    assert (code, "plugin_was_loaded" in sys.modules) == (0, False)
    for words in ("Dig a hole.", "A module that is heavy to import.", "gone"):
        assert words in panel


def test_a_plug_in_function_or_app_is_a_command_that_the_shell_completes(fovea, plug_in, monkeypatch):
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
    plug_in(("many", "hole_digger.verbs:app"))
    monkeypatch.setenv("_FOVEA_COMPLETE", "complete_bash")
    for typed, wanted in (("fovea jo", "jobs"), ("fovea jobs wa", "watch"), ("fovea many o", "one")):
        monkeypatch.setenv("COMP_WORDS", typed)
        monkeypatch.setenv("COMP_CWORD", str(len(typed.split()) - 1))
        assert fovea()[1] == wanted


def test_a_plug_in_cannot_take_the_place_of_a_verb_and_one_that_lacks_a_library_says_what_to_install(fovea, plug_in):
    plug_in(("models", "hole_digger.verbs:dig"))
    assert "served models" in fovea("models", "--help")[1]
    plug_in(("dig", "hole_digger.verbs:dig"))
    code, _, err = fovea("segmnt", "x.png")
    assert (code, "segment" in err, "dig" in fovea("digg")[2]) == (2, True, True)
    assert fovea("--version") == (0, f"fovea {metadata.version('fovea-serve')}", "")
    plug_in(("dig", "hole_digger.verbs:dig [cpu,vision]"), imports="import a_library_nobody_has")
    code, _, err = fovea("dig")
    assert (code, "a_library_nobody_has" in err, "pip install 'fovea-platform[cpu,vision]'" in err) == (6, True, True)
    plug_in(("dig", "hole_digger.verbs:dig"), imports="import a_library_nobody_has")
    assert "fovea-platform" not in fovea("dig")[2]


@pytest.mark.parametrize(("attr", "imports", "told"), [
    ("dog", "", "has no attribute 'dog'"), ("dig", "def broken(:", "SyntaxError"),
    ("dig", "import hole_digger.vebs", "No module named 'hole_digger.vebs'"),
])  # fmt: skip
def test_a_broken_plug_in_is_told_of_and_leaves_other_commands_alone(fovea, plug_in, attr, imports, told):
    plug_in(("dig", f"hole_digger.verbs:{attr}"), imports=imports)
    assert fovea("models", "--help")[0] == 0
    code, _, err = fovea("dig")
    assert (code, told in err, "can't be loaded" in err) == (8, True, True)
