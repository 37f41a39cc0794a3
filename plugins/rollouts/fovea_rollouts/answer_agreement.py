"""Agreement of two answers to one request, 0 to 1 by kind: texts, boxes, masks, pictures, and other JSON.

Agreement of a shadow's answer with the caller's. Knows answers on the wire; knows nothing about models.
"""

import base64
import io
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from difflib import SequenceMatcher
from statistics import fmean
from typing import Any

from PIL import Image, ImageChops, ImageStat

MAX_WORDS = 2000
"""Words of a text that are compared; what follows says no more."""

MIN_IOU = 0.5
"""Overlap from which two boxes of a class are one object."""

MAX_BOXES = 1000
"""Boxes of an answer that are compared with each of another's."""

MAX_PIXELS = 16_000_000
"""Pixels of a picture that is compared: decoding takes up to 4 bytes of each, and comparing 3."""

_IGNORED = frozenset({"id", "created", "times", "version", "system_fingerprint", "usage", "engine"})
"""Fields that differ between two answers that say the same."""


class TooLargeToCompare(Exception):
    """An answer holds more than is compared."""


@dataclass(frozen=True, slots=True)
class WholeAnswer:
    """An answer with all of its body."""

    content_type: str
    body: bytes


def measure_agreement(ours: WholeAnswer, theirs: WholeAnswer) -> dict[str, float]:
    """Agreement by kind; empty where the answers are of kinds that can't be compared.

    Raises:
        TooLargeToCompare: A picture has too many pixels, or an answer too many boxes.
        ValueError: One of them is not what its content type says.
    """
    kind = ours.content_type.partition(";")[0].strip()
    if kind != theirs.content_type.partition(";")[0].strip():
        return {}
    if kind.startswith("image/"):
        return {"picture": _compare_pictures(ours.body, theirs.body)}
    if kind == "text/event-stream":
        texts = [_join_pieces(_read_events(each.body)) for each in (ours, theirs)]
        return {} if texts == [None, None] else {"text": _compare_texts(*(text or "" for text in texts))}
    if kind != "application/json":
        return {}
    left, right = json.loads(ours.body), json.loads(theirs.body)
    if not isinstance(left, dict) or not isinstance(right, dict):
        return {"json": float(left == right)}
    return _compare_objects(left, right)


def _compare_objects(left: Mapping[str, Any], right: Mapping[str, Any]) -> dict[str, float]:
    if left.keys() == right.keys() == {"results"} and len(left["results"]) == len(right["results"]):
        return _compare_several(left["results"], right["results"])
    found = {}
    texts = _join_pieces([left]), _join_pieces([right])
    if texts[0] is not None and texts[1] is not None:
        found["text"] = _compare_texts(texts[0], texts[1])
    ours, theirs = _list_boxes(left), _list_boxes(right)
    if ours is not None and theirs is not None:
        found["boxes"] = _compare_boxes(ours, theirs)
    for field, kind in (("mask", "mask"), ("restored", "picture")):
        if isinstance(left.get(field), str) and isinstance(right.get(field), str):
            compare = _compare_masks if kind == "mask" else _compare_pictures
            found[kind] = compare(base64.b64decode(left[field]), base64.b64decode(right[field]))
    return found or {"json": _compare_leaves(left, right)}


def _compare_several(left: Sequence[Mapping[str, Any]], right: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """Mean agreement by kind of the answers to several pictures; those that failed are compared as JSON."""
    found: dict[str, list[float]] = {}
    for ours, theirs in zip(left, right, strict=True):
        for kind, agreement in _compare_objects(ours, theirs).items():
            found.setdefault(kind, []).append(agreement)
    return {kind: fmean(agreements) for kind, agreements in found.items()}


def _read_events(body: bytes) -> Iterator[Any]:
    return (json.loads(line[6:]) for line in body.split(b"\n") if line.startswith(b"data: {"))


def _join_pieces(parts: Iterable[Mapping[str, Any]]) -> str | None:
    """The text of a whole answer or of a stream's events, one choice, item or block after the other; None without."""
    texts: dict[tuple[int, int], str] = {}
    for part in parts:
        for place, text in (*_find_choices(part), *_find_blocks(part)):
            texts[place] = texts.get(place, "") + (text or "")
    return "\n".join(texts[place] for place in sorted(texts)) if texts else None


def _find_choices(part: Mapping[str, Any]) -> Iterator[tuple[tuple[int, int], str | None]]:
    """Thoughts, text and calls of tools of each choice of a completion or its chunk, and where they go on."""
    for choice in part.get("choices") or ():
        index, said = choice.get("index", 0), choice.get("delta") or choice.get("message") or choice
        yield (index, -2), said.get("reasoning_content")
        yield (index, -1), said.get("content") or said.get("text")
        for number, call in enumerate(said.get("tool_calls") or ()):
            yield (index, call.get("index", number)), _describe_call(call.get("function") or {})


def _find_blocks(part: Mapping[str, Any]) -> Iterator[tuple[tuple[int, int], str | None]]:
    """Each item or block of a response, a message, or one of their events, and where it goes on."""
    kind, index = str(part.get("type")), part.get("output_index", part.get("index", 0))
    if kind in {"content_block_start", "response.output_item.added"}:
        yield (index, 0), _describe_call(part.get("content_block") or part.get("item") or {})
    elif kind == "content_block_delta" or (kind.startswith("response.") and kind.endswith(".delta")):
        delta: Any = part.get("delta")
        texts = [delta] if isinstance(delta, str) else [delta.get(n) for n in ("text", "thinking", "partial_json")]
        yield (index, 0), "".join(filter(None, texts))
    blocks = part.get("content") if kind == "message" else part.get("output")
    for place, block in enumerate(blocks or ()):
        texts = [each.get("text") for each in (block, *(block.get("content") or ()))]
        yield (place, 0), "".join(filter(None, (*texts, block.get("thinking"), _describe_call(block))))


def _describe_call(call: Mapping[str, Any]) -> str:
    """Which tool is called with what; a stream has the arguments later."""
    given = call.get("arguments") or (json.dumps(call["input"]) if call.get("input") else "")
    return f"{call['name']} {given}" if call.get("name") else given


def _compare_texts(left: str, right: str) -> float:
    """Share of words that stand in both in the same order (Ratcliff and Obershelp)."""
    words = left.split()[:MAX_WORDS], right.split()[:MAX_WORDS]
    return SequenceMatcher(None, *words, autojunk=False).ratio() if any(words) else 1.0


def _list_boxes(answer: Mapping[str, Any]) -> list[Any] | None:
    """Detections of an answer, also where it has them as columns; None without."""
    if columns := answer.get("columns"):
        return [{"box": box, "class_id": kind} for box, kind in zip(columns["xyxy"], columns["class_id"], strict=True)]
    return found if isinstance(found := answer.get("detections"), list) else None


def _compare_boxes(left: Sequence[Mapping[str, Any]], right: Sequence[Mapping[str, Any]]) -> float:
    """F1 of one answer's boxes against the other's: of the same class, overlapping by half, best overlaps first."""
    if not left and not right:
        return 1.0
    if (most := max(len(left), len(right))) > MAX_BOXES:
        raise TooLargeToCompare(f"{most:,} boxes")
    pairs = sorted(
        (
            (iou, i, j)
            for i, a in enumerate(left)
            for j, b in enumerate(right)
            if a.get("class_id") == b.get("class_id") and (iou := _iou(a["box"], b["box"])) >= MIN_IOU
        ),
        reverse=True,
    )
    used_left, used_right = set(), set()
    for _, i, j in pairs:
        if i not in used_left and j not in used_right:
            used_left.add(i)
            used_right.add(j)
    return 2 * len(used_left) / (len(left) + len(right))


def _iou(a: Sequence[float], b: Sequence[float]) -> float:
    width, height = min(a[2], b[2]) - max(a[0], b[0]), min(a[3], b[3]) - max(a[1], b[1])
    shared = max(width, 0) * max(height, 0)
    both = (a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - shared
    return shared / both if both > 0 else 0.0


def _compare_masks(left: bytes, right: bytes) -> float:
    """Dice of two masks."""
    if (pictures := _read_greys(left, right)) is None:
        return 0.0
    ours, theirs = pictures
    total = _count_bright(ours) + _count_bright(theirs)
    return 2 * _count_bright(ImageChops.darker(ours, theirs)) / total if total else 1.0


def _count_bright(mask: Image.Image) -> int:
    return sum(mask.histogram()[128:])


def _compare_pictures(left: bytes, right: bytes) -> float:
    """One less the mean difference of grey values."""
    if (pictures := _read_greys(left, right)) is None:
        return 0.0
    return 1 - ImageStat.Stat(ImageChops.difference(*pictures)).mean[0] / 255


def _read_greys(left: bytes, right: bytes) -> tuple[Image.Image, Image.Image] | None:
    """Both pictures in grey, None where they differ in size; nothing is decoded before the sizes are known."""
    with Image.open(io.BytesIO(left)) as ours, Image.open(io.BytesIO(right)) as theirs:
        if (pixels := max(each.width * each.height for each in (ours, theirs))) > MAX_PIXELS:
            raise TooLargeToCompare(f"{pixels:,} pixels")
        if ours.size != theirs.size:
            return None
        return _to_grey(ours), _to_grey(theirs)


def _to_grey(picture: Image.Image) -> Image.Image:
    """The picture in grey; what it was decoded to goes at once."""
    grey = picture.convert("L")
    picture.close()
    return grey


def _compare_leaves(left: Any, right: Any) -> float:
    """Share of values that are equal, or within a hundredth."""
    ours, theirs = dict(_iterate_leaves(left, "")), dict(_iterate_leaves(right, ""))
    names = ours.keys() | theirs.keys()
    same = sum(name in ours and name in theirs and _is_close(ours[name], theirs[name]) for name in names)
    return same / len(names) if names else 1.0


def _iterate_leaves(value: Any, place: str) -> Iterator[tuple[str, Any]]:
    if isinstance(value, dict):
        for name, item in value.items():
            if name not in _IGNORED:
                yield from _iterate_leaves(item, f"{place}.{name}")
    elif isinstance(value, list):
        for index, item in enumerate(value):
            yield from _iterate_leaves(item, f"{place}.{index}")
    else:
        yield place, value


def _is_close(left: Any, right: Any) -> bool:
    if isinstance(left, int | float) and isinstance(right, int | float):
        return abs(left - right) <= 0.01 * max(abs(left), abs(right))
    return bool(left == right)
