"""The signature is the schema: which fields are bytes, lists or JSON follows from the types alone."""

import contextlib
from typing import Annotated, Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import Base64Bytes, BaseModel, Field

from fovea.api.image import ImageBytes
from fovea.errors import BadInput
from shared.serving import servable_schema
from shared.serving.http.request_parsing import ParsedRequest, build_requests


class Inner(BaseModel):
    size: int = 1


class Tree(BaseModel):
    leaves: "list[Tree]" = Field(default_factory=list)


class Everything(BaseModel):
    image: ImageBytes
    mask: ImageBytes | None = None
    crops: list[ImageBytes] = Field(default_factory=list)
    features: Annotated[bytes, Field(json_schema_extra={"format": "binary"})] | None = None
    count: int = 0
    maybe: int | None = None
    flag: bool = False
    text: str | None = None
    kind: Literal["a", "b"] = "a"
    sizes: list[int] = Field(default_factory=list)
    box: tuple[int, int] | None = None
    inner: Inner | None = None
    tree: Tree | None = None


FIELDS = servable_schema.properties(Everything)


def test_fields_of_bytes_are_found_with_their_media_type_and_schemas_inlined():
    found = servable_schema.blob_fields(Everything)
    assert found == {"image": "image/*", "mask": "image/*", "crops": "image/*", "features": "application/octet-stream"}

    class Other(BaseModel):
        blob: Base64Bytes

    assert servable_schema.blob_fields(Other) == {"blob": "application/octet-stream"}
    assert "$ref" not in str(servable_schema.inline_refs(Everything))
    assert "$defs" not in servable_schema.inline_refs(Everything)
    assert FIELDS["tree"]["anyOf"][0]["properties"]["leaves"]["items"] == {}


@pytest.mark.parametrize(
    ("field", "values", "meaning"),
    [
        ("count", ["7"], "7"), ("text", ["null"], "null"), ("text", ["[1"], "[1"), ("kind", ["b"], "b"),
        ("maybe", ["null"], None), ("maybe", ["3"], "3"), ("flag", ["true"], "true"),
        ("sizes", ["[1, 2]"], [1, 2]), ("sizes", ["1", "2"], ["1", "2"]), ("sizes", ["1"], ["1"]),
        ("box", ["[1, 2]"], [1, 2]), ("inner", ['{"size": 3}'], {"size": 3}), ("inner", ["null"], None),
    ],
)  # fmt: skip
def test_text_values_mean_what_the_field_s_type_says(field, values, meaning):
    assert servable_schema.decode_text(field, FIELDS[field], values) == meaning


def test_form_fills_fields_of_bytes_by_name_and_several_pictures_share_the_other_files():
    asked = ParsedRequest(files=[("image", b"1"), ("mask", b"2"), ("crops", b"3"), ("crops", b"4"), ("features", b"5")])
    (request,), many = build_requests(asked, Everything, 9)
    assert not many
    assert (request.image, request.mask, request.crops, request.features) == (b"1", b"2", [b"3", b"4"], b"5")
    asked = ParsedRequest(files=[("image", b"1"), ("image", b"2"), ("mask", b"m")])
    found, many = build_requests(asked, Everything, 9)
    assert many
    assert [(request.image, request.mask) for request in found] == [(b"1", b"m"), (b"2", b"m")]


class Shelf(BaseModel):
    images: list[ImageBytes]


class Own(BaseModel):
    model: str = "none"


class Open(BaseModel, extra="allow"):
    pass


@pytest.mark.parametrize(
    ("kind", "options", "found"),
    [
        (Shelf, {"images": ["eA==", "eQ=="]}, {"images": [b"x", b"y"]}),
        (Own, {"model": "mine"}, {"model": "mine"}),
        (Open, {"more": 1}, {"more": 1}),
    ],
)
def test_a_model_gets_the_options_that_have_names_of_ours_and_extra_ones_if_it_wants_them(kind, options, found):
    (request,), many = build_requests(ParsedRequest(options=options), kind, 1)
    assert (request.model_dump(), many) == (found, False)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=9),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=6,
)


@given(
    options=st.dictionaries(st.sampled_from([*FIELDS, "images", "model", "else"]), JSON, max_size=5),
    texts=st.dictionaries(
        st.sampled_from(sorted(FIELDS)), st.lists(st.text(max_size=9), min_size=1, max_size=3), max_size=4
    ),
    files=st.lists(
        st.tuples(st.sampled_from(["image", "file", "mask", "crops", "zzz"]), st.binary(max_size=9)), max_size=4
    ),
)
def test_anything_is_read_or_refused_and_never_crashes(options, texts, files):
    with contextlib.suppress(BadInput):
        found, _ = build_requests(ParsedRequest(options=options, texts=texts, files=files), Everything, 2)
        assert all(isinstance(item, Everything | BadInput) for item in found)
