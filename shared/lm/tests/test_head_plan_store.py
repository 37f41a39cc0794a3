"""Head plans are a tenant's or the package's, are found by name or digest, and are never stale."""

import pytest

from fovea.errors import Conflict, InvalidOption, Malformed
from shared.lm.head_plan import HeadPlan
from shared.lm.head_plan_store import HeadPlanStore, save_plan
from shared.storage import ObjectStore


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


def test_a_name_belongs_to_one_plan(objects):
    for _ in range(2):
        save_plan(plan(), objects, "tiny", "mine")
    with pytest.raises(Conflict, match="mine"):
        save_plan(plan("other"), objects, "tiny", "mine")


@pytest.mark.parametrize("name", ["", "../up", "Big", "a/b", ".hidden"])
def test_names_that_are_no_names_are_refused_and_never_a_path(objects, name):
    with pytest.raises(InvalidOption):
        save_plan(plan(), objects, "tiny", name)
    assert name not in HeadPlanStore("tiny", None, objects)
