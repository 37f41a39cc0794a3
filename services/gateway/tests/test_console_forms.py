"""Forms from schemas: every kind of option becomes the right control, whatever model declares it."""

from enum import Enum
from typing import Annotated, Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import BaseModel, Field

from fovea.api.arrays import ArrayBytes
from fovea.api.image import ImageBytes
from fovea.api.mask import SegmentIn
from fovea.api.model import pick_headline
from fovea.api.text import ChatRequest
from services.gateway.console import model_view
from services.gateway.console.schema_forms import build_fields
from services.gateway.console.task_options import build_options


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
    assert {name: model_view.describe_type(FOUND[name]) for name in words} == words


def test_the_required_come_first_and_bounds_choices_defaults_and_descriptions_are_carried_over():
    assert next(iter(FOUND)) == "picture"
    assert [field.name for field in FOUND.values() if field.required] == ["picture"]
    share, colour, forms = FOUND["share"], FOUND["colour"], FOUND["forms"]
    assert (share.low, share.high, share.step, share.default, share.is_slider) == (0, 1, 0.01, 0.25, True)
    assert share.help == "A part of `all`."
    assert (colour.choices, colour.default) == (("red", "blue"), "blue")
    assert (forms.choices, forms.default) == (("mask", "rle"), ["mask"])
    assert (FOUND["ids"].items, FOUND["prompt"].help) == ("integer", "Kind of object to find.")
    assert not FOUND["free"].is_slider


def test_an_example_stands_for_the_defaults_and_a_page_may_keep_options_to_itself():
    schema = SegmentIn.model_json_schema()
    found = build_fields(schema, without=frozenset({"image", "model"}), values={"threshold": 0.7})
    names = [field.name for field in found]
    assert names == ["threshold", "normalise", "min_area", "min_peak", "keep_largest", "include"]
    assert found[0].default == 0.7


@pytest.mark.parametrize(
    ("card", "option", "words"),
    [
        ({"details": {"defaults": {"min_peak": 0.71}}}, "min_peak", "Default: 0.71"),
        ({}, "min_peak", "Not set"),
        ({"task": "chat", "sampling": {"top_p": 0.9}}, "top_p", "Default: 0.9"),
        ({"task": "chat"}, "max_tokens", "Default: as many as fit"),
    ],
)
def test_an_empty_option_shows_what_it_stands_for(card, option, words):
    schema = (ChatRequest if "task" in card else SegmentIn).model_json_schema()
    options = build_options({"schema": schema, **card}, card.get("task", "segment"))
    found = {field.name: field.placeholder for field in options}
    assert found[option] == words


@pytest.mark.parametrize(
    ("metrics", "told"),
    [
        # Of two numbers the one with both sides is the headline.
        ([("dice", 0.9, None, "ours"), ("iou", 0.8, 0.7, "both")], ("iou", 0.8, 0.7, "both", False)),
        # A number of the paper's own data does not stand next to ours, and none next to a synthetic one.
        ([("dice", 0.9, None, "ours"), ("dice.kvasir", None, 0.898, "Kvasir")], ("dice", 0.9, None, "ours", False)),
        ([("map", 0.57, 0.95, "400 synthetic slides")], ("map", 0.57, None, "400 synthetic slides", True)),
        # Without a measurement the paper's number stands alone.
        ([("dice", None, 0.9, "Kvasir")], ("dice", None, 0.9, "Kvasir", False)),
    ],
)
def test_a_headline_compares_only_what_was_measured_alike(metrics, told):
    found = pick_headline([dict(zip(("name", "ours", "paper", "data"), one, strict=True)) for one in metrics])
    assert (found.name, found.ours, found.paper, found.data, found.is_synthetic) == told
    assert pick_headline([]) is None


_PART = st.recursive(
    st.fixed_dictionaries(
        {},
        optional={
            "type": st.sampled_from(["string", "number", "integer", "boolean", "array", "object", "null", "odd"]),
            "default": st.none() | st.booleans() | st.integers(),
            "enum": st.lists(st.text(max_size=3), max_size=3),
            "$ref": st.sampled_from(["#/$defs/A", "#/$defs/none", "elsewhere"]),
            "minimum": st.floats(-5, 5),
            "maximum": st.floats(-5, 5),
        },
    ),
    lambda part: st.fixed_dictionaries({}, optional={"anyOf": st.lists(part, max_size=3), "items": part}),
    max_leaves=4,
)


@given(st.dictionaries(st.text(min_size=1, max_size=5), _PART, max_size=4))
def test_no_schema_breaks_the_form(properties):
    schema = {"type": "object", "properties": properties, "$defs": {"A": {"type": "integer"}}}
    assert {field.name for field in build_fields(schema)} == properties.keys()
