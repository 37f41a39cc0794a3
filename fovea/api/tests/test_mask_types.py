"""The request of a segmentation takes its options in every form that fronts hand over, and refuses the rest."""

import pytest
from pydantic import ValidationError

from fovea.api.mask import SegmentIn

PICTURE = b"\x89PNG picture"


@pytest.mark.parametrize(
    "include", [["mask", "rle"], ("mask", "rle"), "mask,rle", ["mask,rle"], [" mask", "rle "], "mask, rle,", [], ""]
)
def test_forms_are_named_as_a_list_or_as_text_or_none_at_all(include):
    assert SegmentIn(image=PICTURE, include=include).include == (("mask", "rle") if include else ())


@pytest.mark.parametrize(("field", "value"), [
    ("threshold", -0.01), ("threshold", 1.01), ("threshold", "high"), ("threshold", float("nan")),
    ("normalise", "zscore"), ("min_area", -1), ("min_area", 1.5), ("include", ["video"]), ("include", 7),
    ("include", [1]), ("include", {"mask": True}), ("image", "not base64!"), ("image", None), ("colour", "red"),
])  # fmt: skip
def test_bad_option_is_refused_by_name(field, value):
    with pytest.raises(ValidationError, check=lambda e: field in str(e.errors()[0]["loc"])):
        SegmentIn.model_validate({"image": PICTURE, field: value})


def test_schema_marks_the_picture_for_fronts():
    properties = SegmentIn.model_json_schema()["properties"]
    assert [name for name, prop in properties.items() if "contentMediaType" in prop] == ["image"]
    assert all("description" in prop for prop in properties.values())
