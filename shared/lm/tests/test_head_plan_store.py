"""Head plans lie in folders by model, are found by name or digest, and are never stale."""

from __future__ import annotations

import pytest

from shared.errors import Conflict, InvalidOption, Malformed
from shared.lm.head_plan import HeadPlan
from shared.lm.head_plan_store import HeadPlanStore, save_plan


def plan(rule=""):
    return HeadPlan.parse({"schema": "head-plan/1", "roles": [[1, 0]], "rule": rule})


def test_later_folders_win_and_other_models_have_none(tmp_path):
    for folder, name, rule in (("a", "default", "old"), ("b", "default", "new"), ("a", "other", "kept")):
        save_plan(plan(rule), tmp_path / folder, "tiny", name)
    plans = HeadPlanStore("tiny", tmp_path / "a", tmp_path / "b")
    assert {name: found.rule for name, found in plans.items()} == {"default": "new", "other": "kept"}
    assert len(plans) == 2
    assert HeadPlanStore("huge", tmp_path / "a") == {}


def test_a_plan_is_there_as_soon_as_it_is_stored_and_by_its_digest(tmp_path):
    plans, made = HeadPlanStore("tiny", tmp_path), plan("made later")
    assert "mine" not in plans
    save_plan(made, tmp_path, "tiny", "mine")
    assert plans["mine"] == plans[made.digest] == made
    assert "0" * 64 not in plans


def test_a_file_that_changed_is_read_again_and_a_broken_one_is_told_to_who_asks(tmp_path):
    plans = HeadPlanStore("tiny", tmp_path)
    file = save_plan(plan("first"), tmp_path, "tiny", "mine")
    assert plans["mine"].rule == "first"
    file.write_text(plan("second, longer").text())
    assert plans["mine"].rule == "second, longer"
    file.write_text("{")
    with pytest.raises(Malformed):
        plans.get("mine")


def test_a_name_belongs_to_one_plan(tmp_path):
    file = save_plan(plan(), tmp_path, "tiny", "mine")
    assert save_plan(plan(), tmp_path, "tiny", "mine") == file
    with pytest.raises(Conflict, match="mine"):
        save_plan(plan("other"), tmp_path, "tiny", "mine")


@pytest.mark.parametrize("name", ["", "../up", "Big", "a/b", ".hidden"])
def test_names_that_are_no_file_names_are_refused(tmp_path, name):
    with pytest.raises(InvalidOption):
        save_plan(plan(), tmp_path, "tiny", name)
