"""Labelling configurations of Label Studio: which tag labels which picture, and with what.

Knows their XML; knows no model.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal
from xml.etree.ElementTree import Element  # only the type: the text is parsed by defusedxml

from defusedxml import DefusedXmlException
from defusedxml.ElementTree import ParseError, fromstring

from fovea.errors import InvalidOption, Malformed

RegionKind = Literal["rectanglelabels", "polygonlabels", "brushlabels", "choices"]
"""Type of a region, which is also the key of its labels."""

_KINDS: dict[str, RegionKind] = {
    "RectangleLabels": "rectanglelabels",
    "PolygonLabels": "polygonlabels",
    "BrushLabels": "brushlabels",
    "Choices": "choices",
}

FITTING: dict[str, tuple[RegionKind, ...]] = {
    "detect": ("rectanglelabels",),
    "segment": ("brushlabels", "polygonlabels"),
    "classify": ("choices",),
}
"""Task of a model → regions that its answers can become, best first."""


@dataclass(frozen=True, slots=True)
class ControlTag:
    """A tag with which people label a picture, and the key (`field`) of the picture's address in a task's data.

    `name` and `to_name` are `from_name` and `to_name` of its regions; `aliases` give the label that stands for a
    model's class in lower case.
    """

    kind: RegionKind
    name: str
    to_name: str
    field: str
    labels: tuple[str, ...]
    aliases: dict[str, str]

    def label_of(self, class_name: str) -> str | None:
        """The label for a class of the model; None where nobody asked for that class."""
        return self.aliases.get(class_name.casefold())


def folder_name(label: str) -> str:
    """Name of the folder for pictures of a choice, and so of the trained class: less what no folder's name may hold."""
    kept = "".join(letter if letter.isprintable() and letter not in '/\\:*?"<>|' else "-" for letter in label)
    return kept.strip(" .")[:60] or "-"


def parse_label_config(text: str) -> list[ControlTag]:
    """The tags of a configuration that label pictures, in its order.

    Raises Malformed: the text is not XML, or holds entities.
    """
    try:
        root: Element = fromstring(text)
    except (ParseError, DefusedXmlException, ValueError) as error:
        raise Malformed("The labelling configuration can't be read as XML.", field="label_config") from error
    pictures = {tag.get("name", ""): tag.get("value", "").lstrip("$") for tag in root.iter("Image")}
    return [
        _read_control(tag, pictures)
        for tag in root.iter()
        if tag.tag in _KINDS and tag.get("toName", "").split(",")[0] in pictures
    ]


def find_control(text: str, task: str) -> ControlTag:
    """The tag of a configuration that takes the answers of a task; InvalidOption if it has none."""
    kinds = FITTING.get(task, ())
    controls = [control for control in parse_label_config(text) if control.kind in kinds]
    if not controls:
        wanted = " or ".join(name for kind in kinds for name, known in _KINDS.items() if known == kind)
        detail = f"The labelling configuration has no tag that takes answers of {task!r}."
        hint = f"Give its <Image> a {wanted}." if wanted else f"Tasks: {', '.join(FITTING)}."
        raise InvalidOption(detail, hint=hint, field="label_config")
    return min(controls, key=lambda control: kinds.index(control.kind))


def _read_control(tag: Element, pictures: dict[str, str]) -> ControlTag:
    """A tag with its labels; `predicted_values` of a label lists classes of the model that it stands for."""
    to_name = tag.get("toName", "").split(",")[0]
    labels: list[str] = []
    aliases: dict[str, str] = {}
    for entry in _iterate_entries(tag):
        value = entry.get("value", "")
        labels.append(label := entry.get("alias") or value)  # results have the alias
        names = (folder_name(label), label, value, *entry.get("predicted_values", "").split(","))
        aliases |= {name.strip().casefold(): label for name in names if name.strip()}
    return ControlTag(_KINDS[tag.tag], tag.get("name", ""), to_name, pictures[to_name], tuple(labels), aliases)


def _iterate_entries(tag: Element) -> Iterator[Element]:
    """The labels or choices of a tag, also those inside of <View> and the like; not choices of a choice."""
    for child in tag:
        if child.tag not in {"Label", "Choice"}:
            yield from _iterate_entries(child)
        elif child.get("value"):
            yield child
