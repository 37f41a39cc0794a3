"""Pages as the server draws them: what they say, sound HTML, the security policy, and forms from schemas."""

import itertools
import json
import re
from enum import Enum
from html.parser import HTMLParser
from pathlib import Path
from typing import Annotated, Literal

import httpx2
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import BaseModel, Field

from fovea import plugins
from fovea.api.arrays import ArrayBytes
from fovea.api.image import ImageBytes
from fovea.api.mask import SegmentIn
from fovea.api.model import ModelEntry, pick_headline
from fovea.api.text import ChatRequest
from services.gateway import console
from services.gateway.console import model_view
from services.gateway.console.page import Page
from services.gateway.console.pages import select_model
from services.gateway.console.schema_forms import build_fields
from services.gateway.console.snippets import build_snippets
from services.gateway.console.task_options import build_options
from services.gateway.tests.stage import running
from services.gateway.tests.stub_service import CARDS, Stub, photograph
from tests.harness.waiting import wait_until

STATIC = Path(console.__file__).parent / "static"
PAGES = (
    "/", "/console/models", "/runs", "/runs/none", "/console/segment", "/console/segment?model=disc-large",
    "/console/chat", "/console/jobs", "/console/judge", "/console/probe", "/console/classify",
    "/console/run/classify", "/console/run/judge", "/console/run/none", "/console/models/disc",
    "/console/models/patches/tiny", "/console/models/parrot", "/console/models/nope",
)  # fmt: skip
VOID = {"area", "br", "hr", "img", "input", "link", "meta", "path", "circle", "rect", "source", "wbr"}


@pytest.fixture(scope="module")
def site(stage):
    with httpx2.Client(base_url=stage.url) as client:
        yield client


class Sound(HTMLParser):
    """Reads a page strictly: balanced tags, and everything that the checks below look at."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.feed(text)
        assert not self.open, f"left open: {self.open}"

    def handle_starttag(self, tag, attrs):
        names = [name for name, _ in attrs]
        assert len(names) == len(set(names)), f"<{tag}> says something twice: {names}"
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        if tag not in VOID:
            assert self.open.pop() == tag, f"</{tag}> closes nothing"

    def handle_startendtag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def all(self, name):
        return [found[name] for _, found in self.tags if found.get(name) is not None]


@pytest.mark.parametrize("path", PAGES)
def test_a_page_is_sound_has_nothing_inline_and_its_controls_have_names(site, path):
    page = Sound(site.get(path).text)
    ids, labelled = page.all("id"), set(page.all("for"))
    assert (len(ids), page.all("style")) == (len(set(ids)), [])
    assert not [name for _, found in page.tags for name in found if name.startswith("on")]
    assert all(found.get("src", "").startswith("/console/static/") for tag, found in page.tags if tag == "script")
    assert [tag for tag, _ in page.tags].count("h1") == 1
    for name in ("for", "aria-describedby", "aria-labelledby"):
        assert set(page.all(name)) <= set(ids)
    for tag, found in page.tags:
        if tag in {"select", "textarea"} or (tag == "input" and "value" not in found | {"hidden": None}):
            assert found.get("id") in labelled or "aria-label" in found, found


def test_everything_that_pages_load_or_link_to_is_there_with_its_type_under_the_strict_policy(site):
    pages = [Sound(site.get(path).text) for path in PAGES]
    for place in {place for page in pages for name in ("href", "src") for place in page.all(name)}:
        if place.startswith("/") and not place.startswith(("/readyz", "/metrics", "/docs")):
            assert site.get(place).status_code == 200, place
    answer = site.get("/")
    policy = answer.headers["content-security-policy"]
    for words, are_there in (("default-src 'none'", True), ("script-src 'self';", True), ("unsafe", False)):
        assert (words in policy) is are_there, words
    assert len(answer.headers.get_list("content-security-policy")) == 1
    assert answer.headers["cache-control"] == "no-store"
    kinds = {"js/frame.js": "text/javascript", "css/page.css": "text/css", "favicon.svg": "image/svg+xml"}
    for file, kind in kinds.items():
        assert site.get(f"/console/static/{file}").headers["content-type"].startswith(kind)
    for place in ("..", "%2e%2e"):
        assert site.get(f"/console/static/{place}/pages.py").status_code == 404


@pytest.mark.parametrize("file", sorted((STATIC / "js").glob("*.js")), ids=lambda file: file.name)
def test_a_module_writes_no_html_evaluates_no_text_and_imports_modules_that_are_there(file):
    text = file.read_text("utf8")
    assert all((file.parent / name).exists() for name in re.findall(r'from "\./([^"]+)"', text))
    forbidden = r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|\beval\(|new Function|\.style\b"
    assert not re.search(forbidden, text)
    assert text.startswith("/**"), "a module says what it knows"
    assert len(text.splitlines()) <= 300


def test_home_shows_each_model_with_our_number_and_the_papers_and_unknown_ones_are_pages_that_help(site):
    assert "4 of 5 models ready in 1 service." in " ".join(site.get("/").text.split())
    text = site.get("/console/models").text
    for name in CARDS:
        assert f'href="/console/models/{name}"' in text
    for words in ("0.873", "0.912", 'href="/console/classify?model=patches/tiny"'):
        assert words in text
    assert (text.count("Not ready"), "No model does this" in site.get("/console/run/paint").text) == (1, True)
    assert "<script" not in re.sub(r"<script type=.module. src=[^>]+>", "", site.get("/console/run/%3Cscript%3E").text)
    for place in ("nope", "disc/example", "%00", "disc%3Fx=1", "%2e%2e%2fjobs", "%2e%2e%2f%2e%2e%2freadyz"):
        answer = site.get(f"/console/models/{place}")
        assert (answer.status_code, answer.headers["content-type"][:9]) == (404, "text/html"), place
        assert "All models" in answer.text


def test_the_model_of_the_address_is_chosen_or_the_first_that_is_ready_and_the_chat_has_the_vectors_of_its_model(site):
    def chosen(path):
        return re.search(r'<option value="([^"]+)" selected', site.get(path).text).group(1)

    models = {"": "disc", "?model=disc-large": "disc-large", "?model=nope": "disc"}
    assert {query: chosen(f"/console/segment{query}") for query in models} == models
    (vectors,) = Sound(site.get("/console/chat").text).all("data-vectors")
    assert [one["id"] for one in json.loads(vectors)] == ["louder@1"]
    facts, states = {"created": 1, "task": "segment", "service": "stub"}, {"a": "loading", "b": "ready"}
    models = [ModelEntry(id=name, ready=name == "b", state=state, **facts) for name, state in states.items()]
    assert [select_model(models, name).id for name in (None, "nope", "b")] == ["a", "a", "b"]
    assert select_model([], None) is None


def test_a_card_shows_facts_snippets_and_limits_that_apply_and_what_it_says_is_never_markup(site, stage, monkeypatch):
    text = site.get("/console/models/disc").text
    for words in (
        "60 held-out synthetic frames", "Not a medical device.", "also available: as-described", "1,234,567",
        "sha256", "FP32 [-1, 3, 352, 352]", "tritonclient", "-F image=@picture.jpg", "<code>minmax</code> stretches",
    ):  # fmt: skip
        assert words in text
    limits = {"max_batch": 8, "max_side": 4096, "max_pixels": 9_000_000}
    for name, are_shown in (("disc", True), ("parrot", False)):
        before, stage.stub.cards[name]["limits"] = stage.stub.cards[name]["limits"], limits
        text = site.get(f"/console/models/{name}").text
        stage.stub.cards[name]["limits"] = before
        assert ("4,096" in text, "Max batch" in text) == (are_shown, True), name
    stage.stub.cards["disc"]["notes"] = ["<img src=x onerror=alert(1)> `<b>`"]
    stage.stub.cards["disc"]["paper"]["url"] = "javascript:alert(1)"
    try:
        text = site.get("/console/models/disc").text
    finally:
        stage.stub.cards["disc"] |= {"notes": ["Not a medical device."], "paper": CARDS["disc"]["paper"]}
    for words, are_there in (("&lt;img", True), ("<code>&lt;b&gt;</code>", True), ("javascript:", False)):
        assert (words in text) is are_there, words
    for stands_for in (0.71, 0):
        monkeypatch.setitem(stage.stub.cards["disc"], "details", {"defaults": {"min_peak": stands_for}})
        text = site.get("/console/models/disc").raise_for_status().text
        assert f"<code>{stands_for}</code>" in text.partition("<code>min_peak</code>")[2].partition("</tr>")[0]


def test_with_keys_a_page_says_nothing_without_one_and_without_a_service_what_to_do(tmp_path):
    with running(tmp_path, auth="keys") as stage, httpx2.Client(base_url=stage.url) as site:
        locked = [site.get(path) for path in ("/", "/console/segment", "/console/jobs", "/console/models/disc")]
        assert {answer.status_code for answer in locked} == {401}
        assert all("This gateway asks for a key" in answer.text and "disc" not in answer.text for answer in locked)
        _, text = stage.keys.add("lab", ("infer", "jobs"))
        site.headers["authorization"] = f"Bearer {text}"
        assert "Authorization: Bearer" in site.get("/console/models/disc").text
    with running(tmp_path) as stage:
        stage.stub.cards.clear()
        with httpx2.Client(base_url=stage.url) as site:
            assert "No model is ready yet" in site.get("/").text
            assert "No segmentation model is served" in site.get("/console/segment").text
            assert "No chat model is served" in site.get("/console/chat").text


@pytest.mark.parametrize(("name", "title", "told"), [
    ("parrot", "openai", "You said: Say hello."), ("disc", "fovea", "model"), ("patches/tiny", "fovea", "model"),
    ("sink", "fovea", "'image': "),
])  # fmt: skip
def test_snippets_run_as_they_stand(stage, capsys, tmp_path, monkeypatch, name, title, told):
    (tmp_path / "picture.jpg").write_bytes(photograph())
    monkeypatch.chdir(tmp_path)
    text = next(s.text for s in build_snippets(CARDS[name], stage.url) if s.title == title)
    exec(compile(text, "snippet", "exec"), {})  # noqa: S102 - it is our own text
    said = capsys.readouterr().out
    assert said == told if title == "openai" else told in said


def test_a_request_that_needs_more_than_a_picture_is_sent_as_the_model_s_example_and_triton_s_client_speaks_tls():
    schema = {"properties": {"image": {"contentMediaType": "image/png"}, "target": {}}, "required": ["target"]}
    card = {**CARDS["disc"], "task": "scanpath", "schema": schema}
    texts = {snippet.title: snippet.text for snippet in build_snippets(card, "https://fovea.example")}
    assert "/v1/models/disc/example" in texts["curl"]
    assert 'client.run("scanpath", client.example("disc"))' in texts["fovea"]
    assert 'InferenceServerClient("fovea.example", ssl=True)' in texts["tritonclient"]


def _palettes():
    text = (STATIC / "css/tokens.css").read_text("utf8")
    pairs = re.findall(r"--([\w-]+): light-dark\((#[0-9a-f]{6}), (#[0-9a-f]{6})\)", text)
    return {name: light for name, light, _ in pairs}, {name: dark for name, _, dark in pairs}


def _luminance(colour):
    parts = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    red, green, blue = (c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in parts)
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue


def test_text_has_enough_contrast():
    pairs = [
        *itertools.product(("ink", "muted", "accent", "good", "warn", "bad"), ("paper", "surface")),
        ("muted", "sunken"), ("accent-strong", "accent-soft"), ("on-accent", "accent"),
        ("on-accent", "accent-strong"), ("warn", "warn-soft"), ("bad", "bad-soft"),
    ]  # fmt: skip
    for palette in _palettes():
        contrasts = {pair: [0.05 + _luminance(palette[name]) for name in pair] for pair in pairs}
        assert {pair: both for pair, both in contrasts.items() if max(both) / min(both) < 4.5} == {}


class Colour(Enum):
    """A choice by reference."""

    RED = "red"
    BLUE = "blue"


class Point(BaseModel):
    """Something that has no control of its own."""

    x: int = 0


class Everything(BaseModel):
    """One option of each kind."""

    share: float = Field(0.25, ge=0, le=1, description="A part of `all`.")
    free: float | None = None
    count: int = Field(3, ge=1, le=50)
    flag: bool = True
    word: str = "hello"
    prompt: str | None = Field(None, description="Kind of object to find.")
    essay: Annotated[str, Field(max_length=5000)] = ""
    colour: Colour = Colour.BLUE
    mode: Literal["a", "b"] | None = None
    fixed: Literal["only"] = "only"
    names: tuple[str, ...] = ("x", "y")
    ids: list[int] | None = None
    forms: tuple[Literal["mask", "rle"], ...] = ("mask",)
    where: Point = Point()
    bias: dict[int, float] | None = None
    either: int | str = 3
    picture: ImageBytes
    more: list[ImageBytes] = Field(default_factory=list)
    maybe: ImageBytes | None = None
    table: ArrayBytes | None = None


FOUND = {field.name: field for field in build_fields(Everything.model_json_schema())}


def test_each_type_has_its_control_shows_its_default_as_one_would_type_it_and_is_told_in_words():
    assert {name: field.kind for name, field in FOUND.items()} == {
        "share": "number", "free": "number", "count": "integer", "flag": "switch", "word": "text",
        "prompt": "prose", "essay": "prose", "colour": "choice", "mode": "choice", "fixed": "choice",
        "names": "list", "ids": "list", "forms": "choices", "where": "json", "bias": "json", "either": "text",
        "picture": "picture", "more": "pictures", "maybe": "picture", "table": "file",
    }  # fmt: skip
    shown = {"share": "0.25", "flag": "true", "names": "x, y", "forms": "mask", "where": '{"x": 0}', "free": ""}
    assert {name: FOUND[name].default_text for name in shown} == shown
    words = {
        "share": "number, 0 to 1", "count": "integer, 1 to 50", "flag": "yes or no", "colour": "red · blue",
        "forms": "any of mask · rle", "ids": "list of integers", "where": "JSON", "word": "text",
    }  # fmt: skip
    assert ({name: model_view.describe_type(FOUND[name]) for name in words}, next(iter(FOUND))) == (words, "picture")
    assert [field.name for field in FOUND.values() if field.required] == ["picture"]
    share, colour, forms = FOUND["share"], FOUND["colour"], FOUND["forms"]
    assert (share.low, share.high, share.step, share.default, share.is_slider) == (0, 1, 0.01, 0.25, True)
    assert (share.help, colour.choices, colour.default) == ("A part of `all`.", ("red", "blue"), "blue")
    assert (forms.choices, forms.default) == (("mask", "rle"), ["mask"])
    assert (FOUND["ids"].items, FOUND["prompt"].help) == ("integer", "Kind of object to find.")
    assert not FOUND["free"].is_slider


def test_what_an_option_stands_for_or_a_permalink_states_is_shown_and_a_page_may_keep_options_to_itself():
    schema = SegmentIn.model_json_schema()
    found = build_fields(schema, without=frozenset({"image", "model"}), values={"threshold": 0.7})
    names = [field.name for field in found]
    assert names == ["threshold", "normalise", "min_area", "min_peak", "keep_largest", "include"]
    assert found[0].default == 0.7
    for card, option, words in (
        ({"details": {"defaults": {"min_peak": 0.71}}}, "min_peak", "Default: 0.71"), ({}, "min_peak", "Not set"),
        ({"task": "chat", "sampling": {"top_p": 0.9}}, "top_p", "Default: 0.9"),
        ({"task": "chat"}, "max_tokens", "Default: as many as fit"),
    ):  # fmt: skip
        schema = (ChatRequest if "task" in card else SegmentIn).model_json_schema()
        options = build_options({"schema": schema, **card}, card.get("task", "segment"))
        assert {field.name: field.placeholder for field in options}[option] == words
    kinds = {"heads": {"type": "integer"}, "forms": {"enum": [1, "x"]}}
    properties = {name: {"type": "array", "items": items} for name, items in kinds.items()}
    for value in (5, "ab", {"a": 1}, [1], None, True):
        for field in build_fields({"properties": properties}, values=dict.fromkeys(kinds, value)):
            assert isinstance(field.default_text, str)
            assert field.default is None or isinstance(field.default, list)


def test_a_headline_compares_only_what_was_measured_alike():
    for metrics, told in (
        # Of two numbers the one with both sides is the headline.
        ([("dice", 0.9, None, "ours"), ("iou", 0.8, 0.7, "both")], ("iou", 0.8, 0.7, "both", False)),
        # A number of the paper's own data does not stand next to ours, and none next to a synthetic one.
        ([("dice", 0.9, None, "ours"), ("dice.kvasir", None, 0.898, "Kvasir")], ("dice", 0.9, None, "ours", False)),
        ([("map", 0.57, 0.95, "400 synthetic slides")], ("map", 0.57, None, "400 synthetic slides", True)),
        # Without a measurement the paper's number stands alone.
        ([("dice", None, 0.9, "Kvasir")], ("dice", None, 0.9, "Kvasir", False)),
    ):
        found = pick_headline([dict(zip(("name", "ours", "paper", "data"), one, strict=True)) for one in metrics])
        assert (found.name, found.ours, found.paper, found.data, found.is_synthetic) == told
    assert pick_headline([]) is None


_FACTS = {
    "type": st.sampled_from(["string", "number", "integer", "boolean", "array", "object", "null", "odd"]),
    "default": st.none() | st.booleans() | st.integers(), "enum": st.lists(st.text(max_size=3), max_size=3),
    "$ref": st.sampled_from(["#/$defs/A", "#/$defs/none", "elsewhere"]),
    **dict.fromkeys(("minimum", "maximum"), st.floats(-5, 5)),
}  # fmt: skip
_LEAF = st.fixed_dictionaries({}, optional=_FACTS)
_PART = st.fixed_dictionaries({}, optional=_FACTS | {"anyOf": st.lists(_LEAF, max_size=3), "items": _LEAF})


@given(st.dictionaries(st.text(min_size=1, max_size=5), _PART, max_size=4))
def test_no_schema_breaks_the_form(properties):
    schema = {"type": "object", "properties": properties, "$defs": {"A": {"type": "integer"}}}
    assert {field.name for field in build_fields(schema)} == properties.keys()


def test_a_page_of_a_plug_in_whose_icon_there_is_none_of_breaks_no_page(tmp_path, monkeypatch):
    mine, load_all = {"mine": Page("Mine", tmp_path, icon="none-such")}, plugins.load_all
    monkeypatch.setattr(plugins, "load_all", lambda *of, **how: mine if "fovea.pages" in of else load_all(*of, **how))
    with running(tmp_path) as stage:
        assert "/console/mine" in httpx2.get(f"{stage.url}/").raise_for_status().text


def test_an_adapter_takes_the_options_of_its_model_and_its_card_is_kept_for_nobody_else(tmp_path, monkeypatch):
    monkeypatch.setattr("services.gateway.console.gateway_client._DEADLINE_S", 0.5)
    stub = Stub()
    listed = {key: stub.cards["parrot"][key] for key in ("task", "service", "ready", "created", "weights", "version")}
    stub.cards["tuned"] = listed | {"id": "tuned", "parent": "parrot", "summary": "Tuned."}
    with running(tmp_path, stub) as stage, httpx2.Client(base_url=stage.url) as site:
        text = site.get("/console/chat?model=tuned").text
        for words in ("Tuned.", 'name="temperature"', 'name="seed"', 'data-method="nearby"'):
            assert words in text
        assert "<code>temperature</code>" in site.get("/console/models/tuned").text
        assert site.get("/console/models/parrot").status_code == 200
        stub.down = True
        wait_until(lambda: site.get("/readyz").status_code == 503, 30, "the outage")
        assert [site.get(f"/console/models/{name}").status_code for name in ("parrot", "tuned")] == [200, 503]
