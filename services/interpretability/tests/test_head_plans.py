"""Scores and gates of heads against published numbers, and the plans that follow from them."""

from pathlib import Path

import numpy as np
import pytest
import torch

from fovea.errors import Cancelled, Conflict, FoveaError, InvalidOption, NotFound
from services.interpretability.core.model_registry import TINY
from services.interpretability.core.result_store import ResultStore
from services.interpretability.experiments import head_plans
from services.interpretability.head_plans import act, makers
from services.interpretability.head_plans.passkey_data import PasskeyTexts, make_passkey_text
from services.interpretability.head_plans.statistic import mean_reach
from shared.lm.attention import sdpa
from shared.lm.attention_math import calibrate, column_mean, excuse_sink
from shared.lm.builders import gemma3, gpt2
from shared.lm.head_plan import HeadPlan, grouped_max
from shared.lm.head_plan_store import HeadPlanStore
from shared.lm.rope import frequencies, rotation
from shared.registry import CallContext
from shared.storage import ObjectStore
from tests.golden import read_golden
from tests.harness.golden_llama import fill_llama

QUICK = {"kind": "duo", "steps": 20, "lengths": [192], "passkeys": 1, "words": 2, "sink": 4, "recent": 32}
SEARCH = {"kind": "act", "samples": 12, "check": 4, "facts": 5, "candidates": 6, "skip": 0}
SEARCH |= {"threshold": 0.05, "beta": 0.3}

GOLDEN = read_golden(Path(__file__).parent / "golden" / "head_plans.arrays")
ANSWER = torch.arange(160) >= 128


@pytest.fixture(scope="module")
def net():
    return fill_llama()


def test_reach_is_that_of_an_attention_that_is_written_down_and_needs_rotary_positions(net):
    ids, seen = torch.arange(90) % 96, {}

    def attend(layer, q, k, v, _offset):
        turn = rotation(frequencies(net.config), torch.arange(90), torch.float64)
        # Turning by the negative angle, pair by pair, undoes the rotation.
        plain = [x[0] * turn[0][0] - x[0].roll(8, -1) * turn[1][0] for x in (q, k)]
        seen[layer] = [x.mean(0) for x in plain]
        return sdpa(q, k.transpose(1, 2), v.transpose(1, 2))

    net(ids[None], attend=attend)
    wanted = torch.zeros(3, 2, dtype=torch.float64)
    for layer, (query, key) in seen.items():
        cos, sin = rotation(frequencies(net.config), torch.arange(30), torch.float64)
        for head in range(4):
            q = query[head] * cos[0, -1, 0] + query[head].roll(8) * sin[0, -1, 0]
            k = key[head // 2] * cos[0, :, 0] + key[head // 2].roll(8) * sin[0, :, 0]
            p = (k @ q / 4).softmax(-1)
            distance = torch.arange(29, -1, -1)  # mass at a distance is missing from so many sums
            wanted[layer, head // 2] += (p * distance).sum() / 30 / 2
    assert torch.allclose(mean_reach(net, ids, 30), wanted, atol=1e-6)
    with pytest.raises(InvalidOption, match="rotary"):
        mean_reach(gpt2(vocab=8, width=8, layers=1, heads=2, hidden=8, positions=16), [1, 2, 3])


@pytest.fixture
def windowed():
    """A Gemma 3 whose first layer sees four tokens, and its second all."""
    torch.manual_seed(0)
    sizes = {"vocab": 128, "width": 24, "layers": 2, "heads": 4, "kv_heads": 2, "hidden": 32, "positions": 256}
    made = gemma3(**sizes, head_dim=8, window=4, every=2).double().requires_grad_(requires_grad=False).eval()
    for parameter in made.parameters():
        parameter.data = 0.4 * torch.randn_like(parameter)
    return made


def test_gates_and_sinks_are_those_of_layers_without_a_window_of_their_own(windowed):
    ids, answer = torch.arange(60) % 64, torch.arange(40, 60)
    gates = torch.tensor([[0.2, 0.7], [0.3, 0.6]], requires_grad=True)
    head_plans.duo_gate_loss(windowed, ids, answer, gates, sink=2, recent=4, reg=0).total.backward()
    assert (gates.grad[0] == 0).all()
    assert (gates.grad[1] != 0).all()
    open_gates = torch.tensor([[0.0, 0.0], [1.0, 1.0]])
    assert float(head_plans.duo_gate_loss(windowed, ids, answer, open_gates, sink=2, recent=4).distill) < 1e-20
    rule, question = act.SinkCalibration(threshold=0.01), act.Question(ids.tolist(), [1, 2, 3, 4], 0)
    below, above = act.count_sinks(windowed, question, rule)
    assert below == [0] * 4
    assert min(above) > 0
    last = windowed(ids[None])[0, -1, [1, 2, 3, 4]]
    for right in range(4):
        asked = act.Question(ids.tolist(), [1, 2, 3, 4], right)
        assert act.try_heads_together(windowed, asked, rule, []) == (int(last.argmax()) == right)


def test_echo_and_induction_are_the_published_scores_and_razor_takes_a_head_by_each(net):
    scores = head_plans.echo_induction(net, GOLDEN["razor_repeat_ids"], 24)
    assert np.abs(scores.numpy() - GOLDEN["razor_scores_q"]).max() < 1e-7
    for kind in (0, 1):
        table = np.array(grouped_max(scores[:, kind].tolist(), 2))
        assert np.abs(table - GOLDEN["razor_scores_kv"][:, kind]).max() < 1e-7
    plan = head_plans.razor_plan(net, period=20, echo=0.001, induction=0.3)
    assert 1 <= sum(map(sum, plan.roles)) <= 3
    best = np.unravel_index(np.argmax(plan.scores["echo"]), (3, 2))
    assert (plan.roles[best[0]][best[1]], plan.made_by.spec["period"]) == (1, 20)
    plan.check(net.config)


def test_gates_have_the_published_loss_and_gradient_and_cost_their_sparsity_when_open(net):
    gates = torch.from_numpy(GOLDEN["duo_train_gates"]).requires_grad_()
    loss = head_plans.duo_gate_loss(net, GOLDEN["ids"][:160], ANSWER, gates, sink=8, recent=24)
    loss.total.backward()
    found = [float(x.detach()) for x in (loss.distill, loss.sparsity, loss.total)]
    assert np.abs(np.array(found) - GOLDEN["duo_train_losses"]).max() < 2e-5
    assert (gates.grad - torch.from_numpy(GOLDEN["duo_train_grad"])).abs().max() < 2e-5
    loss = head_plans.duo_gate_loss(net, GOLDEN["ids"][:60], torch.arange(40, 60), torch.ones(3, 2), sink=2, recent=4)
    assert float(loss.distill) < 1e-20
    assert float(loss.total) == pytest.approx(0.05)


def test_trained_gates_become_a_plan_with_progress_in_a_table_to_the_last_step(net):
    seen = []
    data = [(torch.from_numpy(GOLDEN["ids"][:80]), torch.arange(60, 80))] * 3
    plan = head_plans.duo_gates(net, data, steps=3, sink=2, recent=8, share=0.5, progress=seen.append)
    assert sum(map(sum, plan.roles)) == 3
    assert all(0 <= gate <= 1 for row in plan.scores["duo_gate"] for gate in row)
    assert len({gate for row in plan.scores["duo_gate"] for gate in row}) > 1
    assert seen[-1] == 1.0
    assert [row[0] for row in makers._training_table([[0.0, 1.0]] * 25).rows] == [10, 20, 25]


@pytest.mark.parametrize("length", [352, 512])
def test_a_passkey_text_asks_for_what_it_hides(tiny, length):
    ids, answer = make_passkey_text(tiny.tokenizer, length, seed=3, keys=2, words=3)
    text, said = (tiny.tokenizer.decode(x.tolist()) for x in (ids, ids[answer]))
    assert len(ids) == length
    hidden = [part.partition(".")[0] for part in text.split("passkey is: ")[1:]]
    assert said == "".join(f" {secret}" for secret in hidden)
    assert text.index("first passkey is") < text.index("second passkey is") < text.index("Question")


def test_passkeys_fit_their_texts_and_questions_have_their_answers_in_the_facts(tiny):
    with pytest.raises(InvalidOption, match="take"):
        make_passkey_text(tiny.tokenizer, 100, keys=4, words=8)
    assert PasskeyTexts(tiny.tokenizer, (250,)).length(0) == 256
    for question in act.make_questions(tiny.tokenizer, 5, facts=6):
        text = tiny.tokenizer.decode(question.ids)
        facts = dict(line.split(": ") for line in text.split("\n")[:-1])
        asked = text.split("\n")[-1].removesuffix(": ")
        assert tiny.tokenizer.token_text(question.options[question.right]) == facts[asked][0]
        assert len(set(question.options)) == 4


def test_a_head_calibrated_alone_is_the_map_form_of_the_rule_whose_sinks_are_the_shared_ones(tiny):
    rule = act.SinkCalibration(beta=0.2, threshold=0.05)
    question = act.make_questions(tiny.tokenizer, 1, facts=5)[0]
    counts = np.array(act.count_sinks(tiny.model, question, rule))
    heads = [(int(l), int(h)) for l, h in np.argwhere(counts > 0)]
    assert heads
    plain, *alone = act.try_heads_alone(tiny.model, question, rule, heads)
    assert plain == act.try_heads_together(tiny.model, question, rule, [])
    assert alone == [act.try_heads_together(tiny.model, question, rule, [head]) for head in heads]
    pattern = torch.rand(12, 12, dtype=torch.float64).tril()
    pattern /= pattern.sum(-1, keepdim=True)
    rule = act.SinkCalibration(threshold=0.2, excuse="zero", min_rows=3)
    over = (column_mean(pattern) > 0.2).nonzero()[:, 0]
    assert rule.sinks(pattern).tolist() == excuse_sink(over[over <= 9], "zero").tolist()
    assert calibrate(pattern, rule.sinks(pattern), 0.3).sum(-1) == pytest.approx(1)


@pytest.fixture
def study(context):
    return head_plans.HeadPlans.load(context)


def made(study, run=None, **options):
    (report,) = study.predict([head_plans.HeadPlansSpec(lm=TINY, **options)], run or CallContext())
    if isinstance(report, FoveaError):
        raise report
    return report


def plan_of(report):
    (artefact,) = report.artefacts
    found = HeadPlan.parse(artefact.content)
    assert found.digest == artefact.sha256
    return found


def elsewhere(folder):
    return ResultStore(ObjectStore.open((folder / "elsewhere").as_uri()), folder / "work")


@pytest.mark.parametrize("options", [
    {"kind": "razor", "period": 24, "repeats": 3}, QUICK, SEARCH, {"kind": "statistic", "lengths": [100]},
    {"kind": "centres", "lengths": [60], "tokens": 150},
], ids=["razor", "duo", "act", "statistic", "centres"])  # fmt: skip
def test_the_same_spec_makes_the_same_plan_and_it_fits_the_model(study, tiny, options, tmp_path):
    first = plan_of(made(study, **options))
    other = head_plans.HeadPlans(study.models, elsewhere(tmp_path))
    assert plan_of(made(other, **options)).digest == first.digest
    first.check(tiny.model.config, tiny.weights_sha256)
    assert (first.model.name, first.made_by.seed) == (TINY, options.get("seed", 0))
    axes = {grid.columns.label: len(grid.columns.ticks) for grid in made(study, **options).grids}
    assert axes.items() <= {"head": 4, "key/value head": 2}.items()


def test_a_plan_with_a_name_is_stored_where_it_is_served_from(study, context):
    options = {"kind": "razor", "period": 24, "repeats": 3, "name": "mine"}
    assert plan_of(made(study, **options)) == HeadPlanStore(TINY, None, context.objects)["mine"]
    made(study, **options)
    with pytest.raises(Conflict, match="another head plan called 'mine'"):
        made(study, **options | {"seed": 1})
    with pytest.raises(ValueError, match="name"):
        head_plans.HeadPlansSpec(name="../up")


def test_training_that_was_stopped_goes_on_and_ends_in_the_same_plan(study, context):
    class StopsAfterOne(CallContext):
        def progress(self, fraction, note=None):
            self.cancel()

    with pytest.raises(Cancelled, match="kept"):
        made(study, StopsAfterOne(), name="mine", **QUICK)
    assert "mine" not in HeadPlanStore(TINY, None, context.objects), "half a training is not a plan"
    told = []
    resumed = made(study, CallContext(report=lambda share, _note: told.append(share)), **QUICK)
    assert told[-1] == 1
    whole = made(head_plans.HeadPlans(study.models, elsewhere(context.cache)), **QUICK)
    assert plan_of(resumed).digest == plan_of(whole).digest


def test_the_search_tries_heads_with_sinks_and_says_when_it_finds_nothing(study):
    report = made(study, **SEARCH)
    (table,) = report.tables
    rising = {row[0] for row in table.rows if row[1] > report.scalars["plain"].value}
    assert 0 < report.scalars["tried"].value <= 6
    assert {f"{l}-{h}" for l, h in plan_of(report).heads} == rising
    assert 0 <= report.scalars["held_out"].value <= 1
    report = made(study, **SEARCH | {"beta": 1.0})
    assert not report.artefacts
    assert "no plan" in report.warnings[0]


def test_plans_from_evidence_and_from_published_tables(study, tiny):
    evidence = {"schema": "retrieval-report/1", "scores": np.eye(3, 4).tolist(), "model": {"name": TINY}}
    plan = plan_of(made(study, kind="retrieval", report=evidence, share=0.5))
    assert (sum(map(sum, plan.roles)), plan.made_by.experiment) == (3, "retrieval_heads")
    table = "0.1\t0.9\n0.5\t0.4\n1.0\t0.0\n"
    assert plan_of(made(study, kind="table", table=table)).roles == [[0, 1], [1, 0], [1, 0]]
    for options, error in (
        ({"kind": "retrieval"}, InvalidOption), ({"kind": "retrieval", "report": "0" * 64}, NotFound),
        ({"kind": "table"}, InvalidOption), ({"kind": "act", "relative_threshold": np.inf}, ValueError),
        *(({"kind": "table", "table": bad}, FoveaError) for bad in ("a\tb", "1\t2\n3", "1\n2", "1 nan\n" * 3)),
        ({"kind": "retrieval", "report": evidence | {"scores": [[None] * 4] * 3}}, FoveaError),
        ({"kind": "razor", "period": 9999}, FoveaError),
    ):  # fmt: skip
        with pytest.raises(error):
            made(study, **options)
