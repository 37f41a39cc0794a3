"""`make lint` stops at claims that break a rule, headlines that say too much, and sparse models without a claim."""

import pytest

from fovea.cli.commands.models import _list_facts
from fovea.results import ModelCard
from fovea_memory.models.fovea_landmark_recall import LandmarkRecall
from services.gateway.console.model_view import list_facts
from shared.registry import servables
from shared.registry.discovery import SERVICES
from shared.registry.discovery import claims as published
from shared.sparsity import OPEN, lint
from tests import claims

MODELS = ("fasternet", "fovea-landmark-recall", "fovea-routing-bytes", "patnet")


@pytest.mark.parametrize("name", MODELS)
def test_every_sparse_model_carries_a_measured_claim_that_console_and_command_line_tell_in_words(name):
    claim = published()[name]
    (card,) = (kind.card for service in SERVICES for kind in servables(service).values() if kind.card.name == name)
    assert card.sparsity == claim
    assert claim.measured.runs >= 30
    assert {finding.rule for finding in lint(claim)} <= OPEN
    assert claim.headline is None
    told = {what: value for what, value, _ in list_facts(card.model_dump(mode="json"))}
    assert f"{claim.sparsity_global:.1%} of {claim.kind}" in told["Sparsity"]
    assert "the speed of dense" in told["Sparsity"]
    entry = {**card.model_dump(mode="json"), "id": name, "service": "s", "ready": True, "created": 0}
    assert told["Sparsity"] in dict(_list_facts(ModelCard.model_validate(entry))).values()


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize(("fields", "rule"), [
    ({"granularity": None}, "S1"), ({"mask": None}, "S2"), ({"counted_in": "config"}, "S3"),
    ({"sparsity_global": 1.0}, "S3"), ({"dense_layers": ["nowhere"]}, "S3"),
])  # fmt: skip
def test_a_bad_record_is_blocked(name, fields, rule, capsys):
    assert claims.read({name: published()[name].model_copy(update=fields)}) == 1
    assert f"{rule} blocks" in capsys.readouterr().out


def test_a_model_that_calls_itself_sparse_owes_a_claim(capsys):
    bare = LandmarkRecall.card.model_copy(update={"sparsity": None})
    assert claims.claimless([bare]) == 0
    for field in ({"summary": "Sparse attention."}, {"notes": ("Its sparsity is .9.",)}):
        assert claims.claimless([bare.model_copy(update=field)]) == 1
    assert "no SparsityClaim" in capsys.readouterr().out
    assert claims.claimless([LandmarkRecall.card.model_copy(update={"summary": "Sparse."})]) == 0
