"""The contract of Servables. Each check takes a loaded one, and raises AssertionError.

The answer is what the Card's network computes with the weights that the Card names; it depends on the request, on each
of its options, and on nothing else: neither on what came before nor on what is answered next to it.
"""

import json
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from pydantic import BaseModel, ValidationError
from pydantic_core import PydanticSerializationError

from fovea.errors import Cancelled, DeadlineExceeded, FoveaError
from shared.registry import CallContext
from shared.rpc.tensors import DTYPES
from shared.vision.decode import decode
from tests.bad_pictures import odd, refused
from tests.contract.checks import kinds, weights
from tests.contract.checks.loaded import CancelsAfter, Loaded, pictures_of, refused_by
from tests.contract.checks.options import FREE, situations, told_values
from tests.contract.checks.requests import (
    about_other_things,
    brief,
    distinct_requests,
    option_values,
    options_of,
    updated,
    with_everything,
)
from tests.contract.sameness import differences
from tests.harness.streams import events_of

LENGTH = 64
"""Length of tensor axes that a spec leaves open, but for the batch."""

COARSE = 1e-2
"""Tolerance of answers whose network ran on two engines: a mask's border moves by a pixel."""


def check_card_says_what_people_must_know(loaded: Loaded) -> None:
    card = loaded.card
    assert card.summary.endswith(".")
    assert card.licence
    assert card.weights is None or len(card.weights) == 64
    assert card.variant is None or card.variant in card.variants
    assert card.name == loaded.kind.card.name
    assert loaded.kind.__doc__
    assert (loaded.servable.engine is not None) == kinds.has_engine(loaded.kind), "checks of engines would overlook it"


def check_schemas_are_json_and_options_are_described(loaded: Loaded) -> None:
    for kind in (loaded.servable.In, loaded.servable.Out):
        assert json.dumps(kind.model_json_schema())
    if loaded.card.task not in {"chat", "complete"}:  # OpenAI's names, known to everyone who calls them
        assert [name for name, prop in options_of(loaded) if not prop.get("description")] == []


def check_example_is_answered_validly(loaded: Loaded) -> None:
    """The answer is an `Out`, says who gave it, and is the same after a way through JSON."""
    request = loaded.servable.example()
    assert type(request).model_validate_json(request.model_dump_json()) == request
    answer = loaded.answer(request)
    events = answer if isinstance(answer, list) else [answer]
    assert events
    for event in events:
        _valid(event)
        assert getattr(event, "model", loaded.card.name) == loaded.card.name
    if not isinstance(answer, list):
        assert isinstance(answer, loaded.servable.Out)
        engine = loaded.servable.engine
        assert engine is None or getattr(answer, "engine", engine.name) == engine.name
        if loaded.pictures and (data := getattr(request, loaded.pictures[0])) and hasattr(answer, "width"):
            picture = decode(data)
            assert (answer.width, answer.height) == (picture.width, picture.height)


def _valid(event: BaseModel) -> None:
    try:
        again = type(event).model_validate_json(event.model_dump_json(warnings="error"))
        strict = type(event).model_validate(event.model_dump())
    except (ValidationError, PydanticSerializationError) as error:
        raise AssertionError(f"the answer does not validate: {error}") from error
    assert again == event, "the answer does not survive JSON"
    assert strict == event


def check_other_requests_are_answered_validly(loaded: Loaded) -> None:
    """So are requests about something else, and with all that may be included."""
    for request, answer in distinct_requests(loaded, 3):
        for event in answer if isinstance(answer, list) else [answer]:
            _valid(event)
        outcome = loaded.outcomes([with_everything(loaded, request)])[0]
        for event in outcome if isinstance(outcome, list) else [outcome]:
            if not isinstance(event, FoveaError):
                _valid(event)


def check_card_names_the_weights_that_are_served(loaded: Loaded) -> None:
    """On a fresh machine the loaded Card names the digest that the class names, and a file of it exists."""
    digest = weights.expected_digest(loaded)
    assert loaded.card.weights == digest, "the loaded weights are not those of the Card"
    if digest is not None:
        assert weights.weights_file(digest) is not None, "no file that came with the packages has the Card's digest"


@kinds.applies_to(kinds.holds_named_network)
def check_networks_hold_the_named_weights(loaded: Loaded) -> None:
    """Every network that the Servable holds has, to the bit, the numbers of a file that its Card names."""
    files = weights.named_files(loaded)
    assert files, "none of the named weights came with the packages"
    for module in weights.modules_of(loaded.servable):
        if not (state := module.state_dict()) or loaded.servable.engine is not None:
            continue  # behind an engine it may be fused: what it computes is compared
        named = (weights.network_of(file).state_dict() for file in files)
        same = (
            state.keys() == known.keys() and all(torch.equal(state[key].cpu(), known[key]) for key in state)
            for known in named
        )
        assert any(same), type(module).__name__


def _reference(loaded: Loaded) -> tuple[torch.nn.Module, str]:
    """The Card's network with the weights that it names, and its method that the engine runs."""
    assert loaded.card.weights is not None
    file = weights.weights_file(loaded.card.weights)
    assert file is not None
    net = weights.network_of(file)
    method = weights.same_as_engine(loaded, net, feeds_of(loaded, rows=2))
    assert method is not None, f"the engine does not compute what {file.stem} does with these weights"
    return net, method


@kinds.applies_to(kinds.has_engine)
def check_engine_computes_the_cards_network(loaded: Loaded) -> None:
    """The engine's graph belongs to these weights: a network built without it gives the same tensors."""
    net, method = _reference(loaded)
    other = weights.same_as_engine(loaded, weights.disturbed(net), feeds_of(loaded, rows=1))
    assert other is None, f"{method} ignores the weights"


@kinds.applies_to(kinds.has_engine)
def check_answer_is_the_cards_networks(loaded: Loaded) -> None:
    """With the network in the engine's place the answer is the same, and with other weights it is another."""
    net, method = _reference(loaded)
    for request, answer in distinct_requests(loaded, 2):
        with _engine_runs(loaded, weights.computed(loaded, net, method)) as calls:
            ours = loaded.answer(request)
        assert calls, "the answer was not made by the engine"
        assert differences(answer, ours, COARSE) == [], "the answer is not what the Card's network computes"
    request, answer = distinct_requests(loaded, 1)[0]
    with _engine_runs(loaded, weights.computed(loaded, weights.disturbed(net), method)):
        (other,) = loaded.outcomes([request])
    assert isinstance(other, FoveaError) or differences(answer, other), "other weights give the same answer"


@contextmanager
def _engine_runs(loaded: Loaded, run: Callable[..., Any]) -> Iterator[list[int]]:
    """Let the engine, wherever the Servable keeps it, run this instead; what comes counts its calls."""
    calls: list[int] = []

    def counting(feeds: Any) -> Any:
        calls.append(1)
        return run(feeds)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loaded.servable.engine, "run", counting)
        yield calls


@kinds.applies_to(kinds.is_plain_and_sync)
def check_answer_depends_on_the_networks_it_holds(loaded: Loaded) -> None:
    """Where no engine is between: noise on the weights of each network changes some answer."""
    if not (modules := weights.modules_of(loaded.servable)):
        assert loaded.card.weights is None, "it names weights, and holds no network"
        return
    requests = [*_asked_of(loaded), *(request for request, _ in distinct_requests(loaded, 3))]
    before = loaded.outcomes(requests)
    for module in modules:
        kept = {key: value.clone() for key, value in module.state_dict().items()}
        try:
            module.load_state_dict(weights.disturbed(module).state_dict())
            after = loaded.outcomes(requests)
        finally:
            module.load_state_dict(kept)
        changed = [_told(mine) != _told(other) for mine, other in zip(before, after, strict=True)]
        assert any(changed), f"no answer depends on {type(module).__name__}"


@kinds.applies_to(kinds.is_no_judge)
def check_answer_depends_on_what_is_asked_about(loaded: Loaded) -> None:
    """Some request about something else, with the same options, has another answer."""
    example = brief(loaded.servable.example())
    if not (others := list(about_other_things(example))):
        pytest.skip("its requests have options only")
    answer = loaded.answer(example)
    outcomes = (loaded.outcomes([other])[0] for other in others)
    told = (one for one in outcomes if not isinstance(one, FoveaError))
    if (first := next(told, None)) is None:
        pytest.skip("no other request is answered")
    if not any(differences(answer, one) for one in (first, *told)):
        raise AssertionError("whatever is asked about, the answer is the same")


def check_batch_equals_its_singles(loaded: Loaded) -> None:
    """Different requests in one batch, each in another's place, are answered as each alone is."""
    found = distinct_requests(loaded, 4)
    assert len(found) > 1, "every request has the same answer"
    turned = [*found[1:], found[0]]
    together = _together(loaded, [request for request, _ in turned])
    for place, ((_, alone), answer) in enumerate(zip(turned, together, strict=True)):
        apart = differences(alone, answer)
        assert apart == [], f"request {place}: {apart[:3]}"


def _together(loaded: Loaded, requests: Sequence[BaseModel]) -> list[Any]:
    """Answers to a batch; of a model that streams, from streams that are read in turns."""
    if loaded.servable.mode != "stream":
        return loaded.answers(requests)
    run = CallContext()
    streams = [events_of(loaded.servable.stream(request, run)) for request in requests]
    found: list[list[Any]] = [[] for _ in streams]
    reading = list(range(len(streams)))
    while reading:
        for place in [*reading]:
            if (event := next(streams[place], None)) is None:
                reading.remove(place)
            else:
                found[place].append(event)
    return found


def check_same_request_has_the_same_answer(loaded: Loaded) -> None:
    first, second = (loaded.answer(loaded.servable.example()) for _ in range(2))
    assert differences(first, second, tolerance=0) == []


def check_nothing_of_earlier_requests_remains(loaded: Loaded) -> None:
    """Other requests, other options and refused ones in between change no answer."""
    found = distinct_requests(loaded, 3)
    first = found[0][0]
    between = [request for request, _ in found[1:]]
    for name, _ in options_of(loaded):
        if (loaded.card.task, name) not in FREE and name not in loaded.pictures:
            tried = (updated(first, **{name: value}) for value in option_values(loaded, name, first)[:2])
            between += [one for one in tried if one is not None]
    for name in loaded.pictures:
        between.append(first.model_copy(update={name: b"no picture"}))
    for request in between[:4] if loaded.servable.mode != "sync" else between:
        loaded.outcomes([request])
    for (request, known), (other, _) in zip(found, [*found[1:], found[0]], strict=True):
        loaded.outcomes([other])
        assert differences(known, loaded.answer(request), tolerance=0) == [], "an earlier request shows"


@kinds.applies_to(kinds.is_called_by_threads)
def check_requests_of_several_threads_do_not_meet(loaded: Loaded) -> None:
    """Where the platform lets several threads in, answers made at once are those made one after the other."""
    found = distinct_requests(loaded, 2)
    asked = [found[place % len(found)] for place in range(6)]
    with ThreadPoolExecutor(3) as pool:
        answers = list(pool.map(lambda one: loaded.answer(one[0]), asked))
    for (_, known), answer in zip(asked, answers, strict=True):
        assert differences(known, answer) == []


def check_cancelled_run_stops(loaded: Loaded) -> None:
    """Cancelled before, between two requests of a batch, and between two pieces of a stream."""
    request = loaded.servable.example()
    run = CallContext()
    run.cancel()
    assert isinstance(refused_by(lambda: loaded.outcomes([request], run)), Cancelled), "answers a cancelled run"
    if loaded.servable.mode == "stream":
        _stops_streaming(loaded, request)
        return
    batch = [request] * 3
    late = refused_by(lambda: loaded.outcomes(batch, CancelsAfter(1)))
    assert isinstance(late, Cancelled), "goes on with a batch whose run was cancelled"


def _stops_streaming(loaded: Loaded, request: BaseModel) -> None:
    long = updated(request, max_tokens=48, stop=None) or request
    whole, run, seen = len(loaded.answer(long)), CallContext(), 0
    try:
        for seen, _ in enumerate(events_of(loaded.servable.stream(long, run)), start=1):  # noqa: B007  # counted
            run.cancel()
    except Cancelled:
        return
    assert seen < max(whole, 2), "streams on after it was cancelled"


def check_passed_deadline_stops(loaded: Loaded) -> None:
    found = refused_by(lambda: loaded.outcomes([loaded.servable.example()], CallContext(deadline=0.0)))
    assert isinstance(found, DeadlineExceeded)


@kinds.applies_to(pictures_of)
def check_bad_picture_costs_its_own_request_only(loaded: Loaded) -> None:
    """Every picture that must be refused is, by its status and field; its neighbour in the batch is answered."""
    fields = loaded.pictures
    good, samples = loaded.servable.example(), refused()
    batch = [good.model_copy(update={fields[0]: sample.data}) for sample in samples]
    *errors, answer = loaded.servable.predict([*batch, good], CallContext())
    assert isinstance(answer, loaded.servable.Out), "a good picture pays for bad ones"
    assert len(errors) == len(samples)
    for sample, error in zip(samples, errors, strict=True):
        assert isinstance(error, FoveaError), sample.name
        assert error.status == sample.status, sample.name
        assert error.field == fields[0], sample.name


@kinds.applies_to(pictures_of)
def check_odd_picture_is_answered_or_refused(loaded: Loaded) -> None:
    fields = loaded.pictures
    for sample in odd():
        request = loaded.servable.example().model_copy(update={fields[0]: sample.data})
        (answer,) = loaded.servable.predict([request], CallContext())
        assert isinstance(answer, loaded.servable.Out) or answer.status < 500, sample.name


@kinds.applies_to(kinds.is_no_judge)
def check_every_option_matters(loaded: Loaded) -> None:
    """For each declared option some value changes the answer, a form of it, or is refused."""
    names = [name for name, _ in options_of(loaded) if (loaded.card.task, name) not in FREE]
    idle = [name for name in names if all(_idle(loaded, [name], one) for one in _where_it_shows(loaded, name))]
    for request in _asked_of(loaded):
        idle = _idle(loaded, idle, request)
    assert idle == [], f"options that change nothing: {', '.join(idle)}"


def _asked_of(loaded: Loaded) -> list[BaseModel]:
    """The example, with everything, and in the situations in which options of its task show."""
    plain = brief(loaded.servable.example())
    example = with_everything(loaded, plain)
    made = [updated(example, **change) for change in situations(loaded.card.task, plain)]
    others = [request for request, _ in distinct_requests(loaded, 3)[1:]]
    found = [request for request in made if request is not None]
    if loaded.servable.mode == "stream":
        return [*found, plain, *others]
    return [plain, *([example] if example != plain else ()), *found, *others]


def _where_it_shows(loaded: Loaded, option: str) -> list[BaseModel]:
    plain = brief(loaded.servable.example())
    made = (updated(plain, **change) for change in situations(loaded.card.task, plain, option))
    return [request for request in made if request is not None]


def _idle(loaded: Loaded, names: list[str], request: BaseModel) -> list[str]:
    """Options that change nothing about the answer to a request."""
    before = loaded.outcomes([request])[0] if names else None
    return [name for name in names if isinstance(before, FoveaError) or not _matters(loaded, name, request, before)]


def _matters(loaded: Loaded, name: str, request: BaseModel, before: Any) -> bool:
    values = [*told_values(loaded.card.task, name, request), *option_values(loaded, name, request)]
    changed = [one for one in (updated(request, **{name: value}) for value in values) if one is not None]
    if not changed:
        return False
    for one in changed:
        after = loaded.outcomes([one])[0]
        if isinstance(after, FoveaError) or differences(before, after, tolerance=0):
            return True
    forms = loaded.servable.media_types()
    return any(_rendered(loaded, request, form) != _rendered(loaded, changed[0], form) for form in forms)


def _rendered(loaded: Loaded, request: BaseModel, form: str) -> bytes | None:
    try:
        return loaded.rendered(request, form)
    except FoveaError as error:
        return error.detail.encode()


def _told(outcome: Any) -> str:
    return outcome.detail if isinstance(outcome, FoveaError) else str(outcome)


@kinds.applies_to(kinds.has_parts)
def check_include_adds_what_it_names(loaded: Loaded) -> None:
    """Each part that can be included is there when it is named, and not when it is not."""
    example = loaded.servable.example()
    bare = updated(example, include=())
    assert bare is not None, "an answer without further parts can't be asked for"
    without = loaded.answer(bare)
    for part in with_everything(loaded, example).include:
        answer = loaded.answer(updated(example, include=(part,)))
        assert getattr(answer, part, None) not in (None, [], ""), f"include={part} adds nothing"
        assert getattr(without, part, None) in (None, [], ""), f"{part} is there without being asked for"


def check_answer_is_rendered_in_every_form_it_offers(loaded: Loaded) -> None:
    """Each form is bytes of its media type, depends on the request, and there are no others."""
    if not loaded.servable.media_types():
        assert loaded.servable.mode != "sync" or not loaded.pictures, "an answer about a picture has a picture"
        return
    request = loaded.servable.example()
    for media in loaded.servable.media_types():
        made = loaded.rendered(request, media)
        assert isinstance(made, bytes)
        assert made, media
        if media.startswith("image/") and media != "image/svg+xml":
            assert f"image/{decode(made).format.lower()}" == media
    assert loaded.rendered(request, "application/x-nobody") is None


def check_graph_is_within_its_stated_parity(loaded: Loaded) -> None:
    """The ONNX graph differs from torch by what the Card says, or the Card says why there is none."""
    notes = [note for note in loaded.card.notes if "ONNX" in note]
    if loaded.servable.engine is None or loaded.servable.engine.name != "onnx":
        assert notes, "a Card without an ONNX graph says why in a note that names ONNX"
        return
    assert any("differs from torch by at most" in note for note in notes)
    other = loaded.kind.load(replace(loaded.place, engine="torch"))
    feeds = feeds_of(loaded, rows=2)
    ours, theirs = loaded.servable.engine.run(feeds), other.engine.run(feeds)
    for name, array in theirs.items():
        assert np.abs(ours[name] - array).max() <= 1e-4 * max(1.0, float(np.abs(array).max()))
    other.close()


def feeds_of(loaded: Loaded, rows: int) -> dict[str, np.ndarray]:
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


SERVABLE_CHECKS = tuple(check for name, check in list(globals().items()) if name.startswith("check_"))
"""All of them, in the order in which they stand here."""

SMOKE_CHECKS = (
    check_card_says_what_people_must_know, check_schemas_are_json_and_options_are_described,
    check_example_is_answered_validly, check_card_names_the_weights_that_are_served, check_batch_equals_its_singles,
    check_passed_deadline_stops, check_bad_picture_costs_its_own_request_only,
)  # fmt: skip
"""Checks that every real model passes in each run; the others are about code that a family's toy has, too."""
