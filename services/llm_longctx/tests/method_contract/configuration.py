"""A method's description of itself: its facts, its knobs, and the head plan that it works by."""

import inspect
import json
from collections.abc import Iterator, Mapping, Sequence

import pytest
from pydantic import ValidationError

from fovea.errors import InvalidOption
from services.llm_longctx.methods import AttentionMethod
from services.llm_longctx.tests.method_contract import oracle


def check_facts(cls: type[AttentionMethod]) -> None:
    """A name, a help text, a frozen strict schema, and configurations that survive JSON."""
    assert cls.name == cls.name.lower(), f"the name {cls.name!r} is not lower case"
    assert inspect.cleandoc(cls.__doc__ or "") != inspect.cleandoc(AttentionMethod.__doc__), f"{cls.name} has no help"
    assert cls.phases <= {"prefill", "decode"}, f"{cls.name} acts in unknown phases: {set(cls.phases)}"
    unknown = cls.actions - {"visibility", "eviction", "copy", "transform"}
    assert not unknown, f"{cls.name} names unknown actions: {unknown}"
    json.dumps(cls.model_json_schema())
    with pytest.raises(ValidationError):
        cls.model_validate({"no_such_knob": 1})
    for how in oracle.trials(cls):
        before = how.model_dump_json()
        again = cls.model_validate_json(before)
        assert again == how, f"{cls.name} does not survive JSON: {before}"
        read = oracle.tokens(31, 31), oracle.MINE[: oracle.NEW]
        played, same = oracle.play(how, *read), oracle.play(again, *read, fresh=True)
        oracle.near(played.logits, same.logits, f"{cls.name} read back from JSON")
        assert how.model_dump_json() == before, f"{cls.name} changes its own knobs while it runs"
        for knob in cls.model_fields:
            with pytest.raises(ValidationError):
                setattr(how, knob, getattr(how, knob))


def check_knobs(cls: type[AttentionMethod]) -> None:
    """Every knob changes what is computed or held, from one of the contract's settings at least."""
    bases = oracle.trials(cls)
    ways: list[dict] = [{}]
    ways += [{"boundaries": oracle.borders(61)}] if "boundaries" in inspect.signature(cls.reference).parameters else []
    ways += [{"chunks": [32, 29]}] if not all(how.chunk_invariant for how in bases) else []
    for knob in cls.model_fields:
        changed = knob in cls.optional_knobs
        for how in bases:
            for other in _others(how, knob, bases):
                same = how.identity() == other.identity()
                assert not (same and how.identity()), f"{cls.name}: prefixes don't depend on {knob}"
                changed = changed or any(_differ(how, other, way) for way in ways)
        assert changed, f"{cls.name} ignores {knob}, or contract_knobs has no setting in which it matters"


def _differ(how: AttentionMethod, other: AttentionMethod, way: dict) -> bool:
    """Whether two settings read or hold a prompt differently; not where one refuses to work for the model."""
    try:
        a, b = (oracle.play(one, oracle.tokens(61, 8), oracle.MINE[: oracle.NEW], **way) for one in (how, other))
    except InvalidOption:
        return False
    return a.positions != b.positions or a.pages != b.pages or float((a.logits - b.logits).abs().max()) > oracle.CLOSE


def _others(how: AttentionMethod, knob: str, bases: Sequence[AttentionMethod]) -> Iterator[AttentionMethod]:
    """The method with other values of a knob: those of its other settings, its schema's names, and others nearby."""
    now = getattr(how, knob)
    values = [getattr(base, knob) for base in bases]
    values += _named(type(how).model_json_schema()["properties"][knob])
    values += [False, True] if isinstance(now, bool) else []
    number = isinstance(now, int | float) and not isinstance(now, bool)
    if number:
        values += [now + 1, now - 1, now * 2, now // 2, now * 0.5, now * 1.5, now + 8, now * 3 + 1, now / 10]
    values += [1, 2, 3, 0.05, 0.3, 0.5, 0.95] if now is None else []
    values += [(), (0,), (1,), ((1, 1), (0, 0)), ((0, 1), (1, 1)), ((0, 0), (0, 1))] if not number else []
    tried = [now]
    for value in values:
        if value not in tried:
            tried.append(value)
            try:
                other = how.with_knobs(**{knob: value})
            except (ValidationError, InvalidOption):
                continue
            if getattr(other, knob) != now:
                yield other


def _named(schema: Mapping) -> list:
    inner = [value for part in schema.get("anyOf", ()) for value in _named(part)]
    return [*schema.get("enum", ()), *([schema["const"]] if "const" in schema else ()), *inner]


def check_plan(cls: type[AttentionMethod]) -> None:
    """A method that works by a head plan follows it, and refuses to work without one."""
    config = oracle.model().config
    plain = cls()
    if cls.needs_plan:
        with pytest.raises(InvalidOption):
            plain.head_plan(config, None)
        told = [plain.head_plan(config, oracle.parse(plan)) for plan in (oracle.PLAN, oracle.OTHER_PLAN)]
        assert told[0] != told[1], f"{cls.name} needs a head plan and ignores it"
    for how in oracle.trials(cls) if plain.overrides("head_plan") else ():
        for plan in (oracle.PLAN, oracle.OTHER_PLAN):
            heads = how.head_plan(config, oracle.parse(plan))
            same = all(getattr(how, knob, None) == getattr(plain, knob, None) for knob in ("roles", "share", "heads"))
            if cls.needs_plan and plan is oracle.PLAN and same:
                if heads.full is not None:
                    assert [list(map(int, row)) for row in heads.full] == plan["roles"], f"{cls.name}: other roles"
                if heads.calibrated:
                    assert heads.calibrated == {tuple(x) for x in plan["heads"]}, f"{cls.name}: other heads"
            played = oracle.play(how, oracle.tokens(31, 31), oracle.MINE[: oracle.NEW], plan=plan)
            for layer, (*_, out) in enumerate(played.layers):
                wanted, acted = oracle.of_layer(how, played, layer).out, oracle.acts_on(how, heads, layer, config)
                for name, rows in (("leaves alone", [not one for one in acted]), ("acts on", acted)):
                    where = f"{how.name}, layer {layer}, plan {plan}: a head that it {name}"
                    oracle.near(out[rows], wanted[rows], where)
