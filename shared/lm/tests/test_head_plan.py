"""Head plans: refusals, scores that become roles, digests; whose they are, and that none is stale."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fovea.errors import BadInput, InvalidOption, Malformed, TooLarge
from shared.lm import head_plan
from shared.lm.builders import llama
from shared.lm.head_plan import HeadPlan, ModelId, QueryCentres, grouped_max, top_share
from shared.lm.head_plan_store import HeadPlanStore, save_plan
from shared.storage import ObjectStore

CONFIG = llama(vocab=8, width=16, layers=3, heads=4, kv_heads=2, hidden=8, positions=32).config
ROLES = [[1, 0], [0, 1], [0, 0]]
PLAN = {
    "schema": "head-plan/1",
    "model": {"name": "tiny", "weights_sha256": "ab", "layers": 3, "query_heads": 4, "kv_heads": 2},
    "made_by": {"experiment": "duo_gates", "spec": {"steps": 3}, "seed": 0, "created": "2026-01-01T00:00:00Z"},
    "scores": {"duo_gate": [[0.9, 0.1], [0.5, 0.5], [0.2, 0.3]], "ours": [[0.0] * 4] * 3},
    "roles": ROLES, "rule": "by hand", "full_fraction": 0.5, "heads": [[2, 3]],
}  # fmt: skip


def test_a_plan_is_read_and_written_without_loss(tmp_path):
    path = tmp_path / "plan.json"
    path.write_text(json.dumps(PLAN))
    plan = HeadPlan.read(path)
    assert (plan.facts(), plan.heads) == (PLAN | {"heads": [[2, 3]]}, [(2, 3)])
    assert HeadPlan.parse(plan.facts()) == plan == HeadPlan.parse(plan)


@pytest.mark.parametrize(("change", "word"), [
    ({"schema": "head-plan/2"}, "schema"), ({"roles": None, "heads": None}, "roles, heads or centres"),
    ({"roles": [[1, 0], [1]]}, "length"), ({"roles": [[2, 0]] * 3}, "roles"), ({"spare": 1}, "spare"),
    ({"full_fraction": 1.5}, "full_fraction"), ({"heads": [[1]]}, "heads"),
])  # fmt: skip
def test_what_is_no_plan_is_refused_and_named(change, word):
    with pytest.raises(Malformed, match=word):
        HeadPlan.parse(PLAN | change)


def test_broken_json_and_huge_files_are_refused(tmp_path, monkeypatch):
    (path := tmp_path / "plan.json").write_text('{"schema": ')
    with pytest.raises(Malformed):
        HeadPlan.read(path)
    monkeypatch.setattr(head_plan, "MAX_BYTES", 4)
    with pytest.raises(TooLarge, match="at most 4"):
        HeadPlan.read(path)


@pytest.mark.parametrize(("change", "word"), [
    ({"roles": ROLES[:2]}, "roles is 2x2, not 3x2"), ({"scores": {"echo": [[0.0] * 3] * 3}}, "echo is 3x3"),
    ({"heads": [[3, 0]]}, r"no head \(3, 0\)"), ({"heads": [[0, -1]]}, "no head"),
    ({"model": {"layers": 4}}, "4 layers, not 3"), ({"model": {"query_heads": 8}}, "8 query_heads"),
])  # fmt: skip
def test_a_plan_for_other_shapes_is_refused(change, word):
    with pytest.raises(BadInput, match=word):
        HeadPlan.parse(PLAN | change).check(CONFIG)


def test_a_plan_for_other_weights_is_refused_unless_forced():
    plan = HeadPlan.parse(PLAN)
    with pytest.raises(BadInput, match="weights ab"):
        plan.check(CONFIG, "cd")
    assert plan.check(CONFIG, "cd", force=True) is plan.check(CONFIG, "ab") is plan.check(CONFIG)


def test_the_digest_depends_on_content_and_not_on_order():
    plan = HeadPlan.parse(PLAN)
    assert plan.digest == HeadPlan.parse(dict(reversed(PLAN.items()))).digest
    assert plan.digest != HeadPlan.parse(PLAN | {"rule": "other"}).digest


ROWS = st.lists(st.sampled_from([0.0, 0.25, 1.0]), min_size=3, max_size=3)


@given(st.lists(ROWS, min_size=1, max_size=5), st.floats(0, 1))
def test_the_top_share_is_the_highest_scores_and_ties_go_to_lower_heads(scores, share):
    roles = top_share(scores, share)
    flat = [(s, r) for row, roles_row in zip(scores, roles, strict=True) for s, r in zip(row, roles_row, strict=True)]
    taken, left = [s for s, r in flat if r], [s for s, r in flat if not r]
    assert len(taken) == round(share * len(flat))
    assert not taken or not left or min(taken) >= max(left)
    tied = [r for s, r in flat if taken and s == min(taken)]
    assert tied == sorted(tied, reverse=True)


def test_another_share_of_the_same_evidence():
    plan = HeadPlan.parse(PLAN)
    assert (plan.with_share(1 / 3).roles, plan.with_share(1 / 3).heads) == ([[1, 0], [1, 0], [0, 0]], [(2, 3)])
    assert plan.with_share(0).roles == [[0, 0]] * 3
    centres = QueryCentres(real=[[[1.0]]], imag=[[[0.0]]], size=[[[1.0]]])
    assert plan.model_copy(update={"centres": centres}).with_share(0).centres == centres
    with pytest.raises(BadInput, match="no score ours"):
        plan.with_share(0.5, by="ours")
    with pytest.raises(BadInput, match="no score"):
        HeadPlan.parse({"schema": "head-plan/1", "roles": ROLES}).with_share(0.5)


@pytest.mark.parametrize("bad", [
    {"scores": [["a", "b"]]}, {"scores": [1, 2]}, {"scores": {"a": 1}}, {"scores": [[1, 2, 3]]}, {"model": 5},
    {"scores": [[1, 2], [1]]}, {"scores": [[]]}, {"seed": "x"}, {"model": {"kv_heads": "x"}},
])  # fmt: skip
def test_a_broken_retrieval_report_is_refused(bad):
    report = {"schema": "retrieval-report/1", "scores": [[0.1, 0.2]] * 2, **bad}
    for broken in (report, [report]):
        with pytest.raises(Malformed, match="retrieval report"):
            HeadPlan.from_retrieval(broken, 0.5, kv_heads=None if "model" in bad else 2)


def test_a_retrieval_report_becomes_a_plan_by_its_groups():
    scores = [[0.1, 0.0, 0.3, 0.9], [0.0, 0.2, 0.2, 0.0]]
    model = {"name": "m", "weights_sha256": "ff"}
    report = {"schema": "retrieval-report/1", "model": model, "scores": scores, "seed": 4}
    plan = HeadPlan.from_retrieval(report, 0.5, kv_heads=2)
    assert plan.scores["retrieval"] == grouped_max(scores, 2) == [[0.1, 0.9], [0.2, 0.2]]
    assert plan.roles == [[0, 1], [1, 0]]
    assert plan.model == ModelId(name="m", weights_sha256="ff", layers=2, query_heads=4, kv_heads=2)
    assert (len(plan.made_by.spec["report_sha256"]), plan.full_fraction) == (64, 0.5)
    with pytest.raises(Malformed, match="not a retrieval report"):
        HeadPlan.from_retrieval({"schema": "head-plan/1"}, 0.5)


def plan(rule=""):
    return HeadPlan.parse({"schema": "head-plan/1", "roles": [[1, 0]], "rule": rule})


@pytest.fixture
def objects(tmp_path):
    return ObjectStore.open((tmp_path / "objects").as_uri())


def test_a_tenants_own_plans_win_and_other_models_have_none(objects, tmp_path):
    (folder := tmp_path / "heads" / "tiny").mkdir(parents=True)
    for name, rule in (("default", "old"), ("other", "kept")):
        (folder / f"{name}.json").write_text(plan(rule).text())
    save_plan(plan("new"), objects.of_tenant("alice"), "Tiny", "default")
    plans = HeadPlanStore("tiny", tmp_path, objects, "alice")
    assert {name: found.rule for name, found in plans.items()} == {"default": "new", "other": "kept"}
    assert len(plans) == 2
    assert HeadPlanStore("huge", tmp_path, objects, "alice") == {}
    assert plans.of_tenant("bob")["default"].rule == "old"


def test_a_plan_is_there_as_soon_as_it_is_stored_and_by_its_digest_for_its_tenant_alone(objects):
    plans, made = HeadPlanStore("tiny", None, objects, "alice"), plan("made later")
    assert "mine" not in plans
    save_plan(made, objects.of_tenant("alice"), "tiny", "mine")
    assert plans["mine"] == plans[made.digest] == made
    assert "0" * 64 not in plans
    assert [*plans.of_tenant("bob")] == []
    assert made.digest not in plans.of_tenant("bob")


def test_a_plan_that_changed_is_read_again_and_a_broken_one_is_told_to_who_asks(objects):
    plans, mine = HeadPlanStore("tiny", None, objects), objects.of_tenant("local").under("head-plans", "tiny")
    save_plan(plan("first"), objects.of_tenant("local"), "tiny", "mine")
    assert plans["mine"].rule == "first"
    mine.put("mine.json", plan("second, longer").text().encode())
    assert plans["mine"].rule == "second, longer"
    mine.put("mine.json", b"{")
    with pytest.raises(Malformed):
        plans.get("mine")


@pytest.mark.parametrize("name", ["", "../up", "Big", "a/b", ".hidden"])
def test_names_that_are_no_names_are_refused_and_never_a_path(objects, name):
    with pytest.raises(InvalidOption):
        save_plan(plan(), objects, "tiny", name)
    assert name not in HeadPlanStore("tiny", None, objects)
