"""The request of a segmentation takes its options in every form that fronts hand over, and refuses the rest."""

import pytest
from pydantic import ValidationError

from fovea.api.image import Times
from fovea.api.mask import RunLengths, SegmentIn, SegmentOut

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
    with pytest.raises(ValidationError) as caught:
        SegmentIn.model_validate({"image": PICTURE, field: value})
    assert field in str(caught.value.errors()[0]["loc"])


def test_answer_survives_the_wire():
    answer = SegmentOut(
        model="m", version="1", engine="onnx", width=3, height=2, empty=False, area=1, area_percent=16.7,
        max_probability=0.9, mean_probability=0.8, component_count=1, mask=PICTURE, times=Times(decode=1.5),
        components=[{"box": (0, 0, 1, 1), "area": 1, "centre": (0.5, 0.5), "probability": 0.8}],
        contours=[{"points": [(0, 0), (1, 0), (1, 1), (0, 1)], "hole": False}],
        rle=RunLengths(size=(2, 3), counts="01"),
    )  # fmt: skip
    assert SegmentOut.model_validate_json(answer.model_dump_json()) == answer


def test_schema_marks_the_picture_for_fronts():
    properties = SegmentIn.model_json_schema()["properties"]
    assert [name for name, prop in properties.items() if "contentMediaType" in prop] == ["image"]
    assert all("description" in prop for prop in properties.values())
