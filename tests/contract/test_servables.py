"""What every Servable owes the platform, checked for each one that discovery finds. A new model is tested by existing.

It loads, accepts its Card's example, answers a batch as its singles and twice the same, and its answers survive JSON.
It exports to ONNX within its stated parity or says why not, stops when told to, and bad input costs an error below 500.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
from pydantic import BaseModel, ValidationError

from shared.errors import Cancelled, DeadlineExceeded, FoveaError
from shared.registry import Place, Run, Servable, servables
from shared.registry.discovery import SERVICES
from shared.rpc.tensors import DTYPES
from shared.vision.decode import decode
from shared.vision.draw import encode
from tests.bad_pictures import odd, refused
from tests.contract.language_model import endpoint
from tests.contract.sameness import differences

LENGTH = 64
"""Length of tensor axes that a spec leaves open, but for the batch."""

FOUND = {f"{service}/{name}": kind for service in SERVICES for name, kind in servables(service).items()}


def _pictures(kind: type[Servable[Any, Any]]) -> list[str]:
    """Fields of its requests that hold pictures."""
    properties = kind.In.model_json_schema()["properties"]
    return [name for name, prop in properties.items() if prop.get("contentMediaType", "").startswith("image/")]


def _params(kinds: dict[str, type[Servable[Any, Any]]]) -> list[Any]:
    """Language models and long work take more than a few seconds to load."""
    return [pytest.param(k, id=i, marks=() if k.mode == "sync" else (pytest.mark.slow,)) for i, k in kinds.items()]


takes_pictures = pytest.mark.parametrize(
    "loaded", _params({id_: kind for id_, kind in FOUND.items() if _pictures(kind)}), indirect=True
)


@dataclass(frozen=True)
class Loaded:
    """A loaded Servable and the Place it was loaded on."""

    servable: Servable[Any, Any]
    place: Place

    @property
    def pictures(self) -> list[str]:
        """Fields of its requests that hold pictures."""
        return _pictures(type(self.servable))

    def answers(self, requests: list[BaseModel], run: Run | None = None) -> list[Any]:
        """Answers in order, as events where the model streams."""
        run = run or Run()
        if self.servable.mode == "stream":
            return [list(self.servable.stream(request, run)) for request in requests]
        answers = self.servable.predict(requests, run)
        for answer in answers:
            if isinstance(answer, FoveaError):
                raise answer
        return answers


@pytest.fixture(scope="module", params=_params(FOUND))
def loaded(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Loaded]:
    """Each Servable once, loaded as a fresh machine would load it."""
    home = tmp_path_factory.mktemp("fovea")
    with endpoint() as judge_base_url:
        options = {"llm_model": "smollm2", "llm_dtype": "float32", "judge_base_url": judge_base_url}
        place = Place(cache=home / "cache", weights=home / "weights", threads=1, options=options)
        servable = request.param.load(place)
        yield Loaded(servable, place)
        servable.close()


def _variants(loaded: Loaded) -> list[BaseModel]:
    """Three requests that differ in their pictures, or are the example thrice."""
    example = loaded.servable.example()
    if not (fields := loaded.pictures):
        return [example] * 3
    pixels = decode(getattr(example, fields[0])).pixels
    turned = (pixels, pixels[::-1], np.roll(pixels, pixels.shape[1] // 3, axis=1)[: -pixels.shape[0] // 4])
    return [example.model_copy(update={fields[0]: encode(np.ascontiguousarray(page))}) for page in turned]


def _feeds(loaded: Loaded, rows: int) -> dict[str, np.ndarray]:
    """Random tensors as the engine states them, or what the model says makes sense to it."""
    assert loaded.servable.engine is not None
    if (probe := getattr(loaded.servable, "probe", None)) is not None:
        feeds: dict[str, np.ndarray] = probe(rows)
        return feeds
    rng = np.random.default_rng(1)
    return {
        spec.name: rng.standard_normal([rows, *(n if n > 0 else LENGTH for n in spec.shape[1:])]).astype(
            DTYPES[spec.datatype]
        )
        for spec in loaded.servable.engine.inputs
    }


def _engine_or_skip(loaded: Loaded) -> None:
    if loaded.servable.engine is None:
        pytest.skip("takes no tensors")


def test_something_is_served():
    assert FOUND


def test_card_says_what_people_must_know(loaded):
    card = loaded.servable.card
    assert card.summary.endswith(".")
    assert card.licence
    assert card.weights is None or len(card.weights) == 64
    assert card.variant is None or card.variant in card.variants
    assert card.name == type(loaded.servable).card.name
    assert type(loaded.servable).__doc__


def test_schemas_are_json_and_every_option_is_described(loaded):
    for kind in (loaded.servable.In, loaded.servable.Out):
        assert json.dumps(kind.model_json_schema())
    if loaded.servable.card.task in {"chat", "complete"}:
        return  # OpenAI's names, known to everyone who calls them
    properties = loaded.servable.In.model_json_schema()["properties"]
    assert [name for name, prop in properties.items() if not prop.get("description")] == []


def test_example_is_answered_and_the_answer_survives_json(loaded):
    (answer,) = loaded.answers([loaded.servable.example()])
    for event in answer if isinstance(answer, list) else [answer]:
        again = type(event).model_validate_json(event.model_dump_json())
        assert again == event
    if not isinstance(answer, list):
        assert isinstance(answer, loaded.servable.Out)


def test_request_survives_json(loaded):
    example = loaded.servable.example()
    assert loaded.servable.In.model_validate_json(example.model_dump_json()) == example


def test_batch_equals_its_singles(loaded):
    requests = _variants(loaded)
    together = loaded.answers(requests)
    assert len(together) == len(requests)
    for request, answer in zip(requests, together, strict=True):
        assert differences(loaded.answers([request])[0], answer) == []


def test_same_request_has_the_same_answer(loaded):
    first, second = (loaded.answers([loaded.servable.example()])[0] for _ in range(2))
    assert differences(first, second, tolerance=0) == []


def test_cancelled_run_stops(loaded):
    run = Run()
    run.cancel()
    with pytest.raises(Cancelled):
        loaded.answers([loaded.servable.example()], run)


def test_passed_deadline_stops(loaded):
    with pytest.raises(DeadlineExceeded):
        loaded.answers([loaded.servable.example()], Run(deadline=0.0))


@takes_pictures
@pytest.mark.parametrize("sample", refused(), ids=lambda sample: sample.name)
def test_bad_picture_costs_its_own_request_only(loaded, sample):
    fields = loaded.pictures
    good = loaded.servable.example()
    bad = good.model_copy(update={fields[0]: sample.data})
    first, second = loaded.servable.predict([bad, good], Run())
    assert isinstance(first, FoveaError)
    assert first.status == sample.status
    assert first.field == fields[0]
    assert isinstance(second, loaded.servable.Out)


@takes_pictures
@pytest.mark.parametrize("sample", odd(), ids=lambda sample: sample.name)
def test_odd_picture_is_answered_or_refused_but_never_crashes(loaded, sample):
    request = loaded.servable.example().model_copy(update={loaded.pictures[0]: sample.data})
    (answer,) = loaded.servable.predict([request], Run())
    assert isinstance(answer, loaded.servable.Out) or answer.status < 500


def test_option_out_of_range_is_refused_by_name(loaded):
    example = loaded.servable.example().model_dump()
    for name, prop in loaded.servable.In.model_json_schema()["properties"].items():
        for value in _beyond(prop):
            with pytest.raises(ValidationError) as caught:
                loaded.servable.In.model_validate({**example, name: value})
            assert caught.value.errors()[0]["loc"][0] == name


def _beyond(prop: dict[str, Any]) -> list[Any]:
    """Values just outside of what a property's schema allows."""
    found: list[Any] = []
    for part in (prop, *prop.get("anyOf", ())):
        found += [part[key] - 1 for key in ("minimum", "exclusiveMinimum") if key in part]
        found += [part[key] + 1 for key in ("maximum", "exclusiveMaximum") if key in part]
        found += ["no such choice"] if "enum" in part else []
    return found


def test_answer_is_rendered_in_every_form_it_offers(loaded):
    if not loaded.servable.media_types():
        assert loaded.servable.mode != "sync" or not loaded.pictures, "an answer about a picture has a picture"
        pytest.skip("offers JSON only")
    request = loaded.servable.example()
    (answer,) = loaded.answers([request])
    for media in loaded.servable.media_types():
        made = loaded.servable.render(request, answer, media)
        assert isinstance(made, bytes)
        if media.startswith("image/") and media != "image/svg+xml":
            assert f"image/{decode(made).format.lower()}" == media
    assert loaded.servable.render(request, answer, "application/x-nobody") is None


def test_graph_is_within_its_stated_parity_or_the_card_says_why_there_is_none(loaded):
    notes = [note for note in loaded.servable.card.notes if "ONNX" in note]
    if loaded.servable.engine is None or loaded.servable.engine.name != "onnx":
        assert notes, "a Card without an ONNX graph says why in a note that names ONNX"
        return
    assert any("differs from torch by at most" in note for note in notes)
    other = type(loaded.servable).load(_with_engine(loaded.place, "torch"))
    feeds = _feeds(loaded, rows=2)
    ours, theirs = loaded.servable.engine.run(feeds), other.engine.run(feeds)
    for name, array in theirs.items():
        assert np.abs(ours[name] - array).max() <= 1e-4 * max(1.0, float(np.abs(array).max()))
    other.close()


def _with_engine(place: Place, engine: Any) -> Place:
    return Place(place.device, engine, place.cache, place.weights, place.threads, place.options)


def test_tensors_in_a_batch_equal_tensors_alone(loaded):
    _engine_or_skip(loaded)
    feeds = _feeds(loaded, rows=3)
    together = loaded.servable.engine.run(feeds)
    assert list(together) == [spec.name for spec in loaded.servable.engine.outputs]
    for row in range(3):
        alone = loaded.servable.engine.run({name: array[row : row + 1] for name, array in feeds.items()})
        for name, array in alone.items():
            assert np.allclose(array[0], together[name][row], atol=1e-4)


def test_tensors_that_do_not_fit_are_the_callers_mistake(loaded):
    _engine_or_skip(loaded)
    feeds = _feeds(loaded, rows=1)
    name = next(iter(feeds))
    for wrong in (feeds[name].astype(np.float64), feeds[name][0], feeds[name][..., :3], None):
        with pytest.raises(FoveaError) as caught:
            loaded.servable.engine.run({**feeds, name: wrong} if wrong is not None else {})
        assert caught.value.status < 500
