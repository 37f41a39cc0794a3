"""RULER: its tasks and scores, and runs."""

import io
import json
import re
from collections import Counter
from dataclasses import replace
from pathlib import Path

import httpx2
import pytest
from PIL import Image

from fovea.api.longctx import LongctxOptions
from fovea.cli.option_groups import expand_options
from fovea.errors import FoveaError, InvalidOption, Malformed
from fovea_lab.ruler import cli, leaderboard, plots, run
from fovea_lab.ruler.answer_store import append_answers, read_answers, read_predictions
from fovea_lab.ruler.method_variants import MethodVariant, list_variants
from fovea_lab.ruler.report import Leader, Prediction
from fovea_lab.ruler.run import EvaluatedModel, export_samples, measure_costs, run_ruler
from fovea_lab.ruler.samples.documents import read_qa
from fovea_lab.ruler.samples.generation import generate
from fovea_lab.ruler.samples.placement import DEPTHS, cwe_rule, fit, fwe_counts, place
from fovea_lab.ruler.samples.sample import render
from fovea_lab.ruler.samples.task import OFFLINE, TASKS
from fovea_lab.ruler.samples.variable_chains import resolve
from fovea_lab.ruler.scoring import score, string_match_all, string_match_part
from fovea_lab.ruler.spec import RulerSpec
from fovea_lab.ruler.statistics import bootstrap, paired
from services.llm_longctx.engine import Engine
from services.llm_longctx.tests.conftest import Server, app_of, tiny_decoder, write_folder
from services.llm_longctx.tests.test_engine_pages import TINY_PLAN
from shared.lm.builders import llama
from shared.lm.head_plan import HeadPlan
from shared.lm.head_plan_store import save_plan
from shared.lm.tokenizer import Tokenizer
from shared.storage import ObjectStore

GOLDEN = Path(__file__).parent / "golden/ruler"


def golden(name):
    return json.loads((GOLDEN / f"{name}.json").read_text("utf8"))


def test_scores_and_intervals_are_the_published_ones_and_chains_resolved():
    cases = golden("metrics")
    for case in cases["cases"]:
        got = score(case["task"], case["prediction"], case["references"])
        assert got == pytest.approx(case["score"], abs=1e-8), case["why"]
    for case in cases["refused"]:
        with pytest.raises((FoveaError, ValueError)):
            score(case["task"], case["prediction"], case["references"])
    for case in cases["batches"]:
        match = string_match_all if case["metric"] == "all" else string_match_part
        assert match(case["predictions"], case["references"]) == pytest.approx(case["percent"], abs=1e-8)
        with pytest.raises(InvalidOption, match="no answers"):
            match([], [])
    for case in golden("chains"):
        assert resolve(case["text"], case["value"]) == case["variables"], case["why"]
    for case in golden("statistics"):
        mean = bootstrap(case["values"], groups=case["groups"], draws=4000)
        assert mean.mean == pytest.approx(case["mean"], abs=1e-9)
        assert (mean.low, mean.high) == pytest.approx(case["interval"], abs=0.03)
        both = paired(case["values"], case["dense"], groups=case["groups"], draws=4000)
        assert both.difference.mean == pytest.approx(case["difference"], abs=1e-9)
        assert (both.difference.low, both.difference.high) == pytest.approx(case["difference_interval"], abs=0.03)
        assert (both.worse, both.better, both.equal) == (case["worse"], case["better"], case["equal"])


def test_counts_places_and_fits_are_the_published_ones():
    cases = golden("frequencies")
    assert list(DEPTHS) == cases["depths"]
    for case in cases["fwe"]:
        assert fwe_counts(case["words"], case["vocabulary"], case["alpha"]) == case["counts"]
    for case in cases["cwe"]:
        assert cwe_rule(case["length"]) == case["rule"]
    for case in cases["places"]:
        assert place(case["units"], case["depths"]) == case["places"]
    for case in cases["fit"]:
        calls = []

        def measure(units, case=case, calls=calls):
            calls.append(units)
            return case["base"] + case["per_unit"] * units

        if case["units"] is None:
            with pytest.raises(InvalidOption):
                fit(measure, case["most"], first=case["first"])
        else:
            assert fit(measure, case["most"], first=case["first"]) == case["units"]
            assert len(calls) <= 2 * case["units"].bit_length() + 6
    assert [fit(lambda units: 10 * units, most, first=0) for most in (5, 10, 35)] == [0, 1, 3]


LENGTHS = {"cwe": 4000, "vt": 4500, "fwe": 5000}


def solve(sample):
    if sample.task == "vt":
        return resolve(sample.context.rsplit("Memorize", 1)[1], re.search(r"value (\d+)", sample.question)[1])
    if sample.task == "cwe":
        words = re.findall(r"\d+\. ([a-z]+)", sample.context.rsplit("Below is", 1)[1])
        return [word for word, _ in Counter(words).most_common(10)]
    if sample.task == "fwe":
        words = Counter(sample.context.rsplit("coded words. ", 1)[1].split())
        del words["..."]
        return [word for word, _ in words.most_common(3)]
    keys = re.search(r"for (.+) mentioned", sample.question)[1]
    found = dict.fromkeys(re.findall(r"One of the special magic \w+ for (\S+) is: (\S+)\.", sample.context))
    return [value for key, value in found if key in re.split(r", and |, ", keys)]


@pytest.mark.parametrize("task", OFFLINE)
def test_a_rule_solves_every_sample(codec, task):
    length, facts = LENGTHS.get(task, 2600), TASKS[task]
    samples = generate(task, codec, length=length, n=3)
    for sample in samples:
        assert sorted(solve(sample)) == sorted(sample.references)
        assert score(task, " ".join(solve(sample)), sample.references) == 1
        assert not any(one in sample.question + sample.answer_prefix for one in sample.references)
        assert sample.context.endswith("\n")
        ids = render(codec, sample)
        assert len(ids.context_ids) + len(ids.question_ids) == sample.tokens
        assert length - 128 <= sample.tokens + facts.max_new_tokens <= length
        whole = codec.decode([*ids.context_ids, *ids.question_ids])
        assert whole.endswith(sample.answer_prefix)
        assert sample.context + sample.question in whole
    assert (len({sample.digest for sample in samples}), generate(task, codec, length=length, n=2)) == (3, samples[:2])
    assert generate(task, codec, length=length, n=1, seed=7)[0].digest != samples[0].digest


def test_needles_are_the_same_at_every_length_and_several_questions_share_a_context(codec):
    for task in ("niah_single_3", "niah_multikey_2", "niah_multiquery"):
        short, long = (generate(task, codec, length=n, n=1)[0] for n in (2500, 4000))
        assert (short.question, short.references, short.depths) == (long.question, long.references, long.depths)
        assert len(short.context) < len(long.context)
    samples = generate("niah_multikey_1", codec, length=3000, n=6, questions=4)
    assert [sample.group for sample in samples] == [0, 0, 0, 0, 1, 1]
    assert (len({sample.context for sample in samples}), len({sample.question for sample in samples[:4]})) == (2, 4)
    for task, options, told in (
        ("niah_multikey_1", {"length": 3000, "questions": 5}, "4 question"),
        ("niah_single_1", {"length": 200}, "smallest prompt"),
        ("niah_single_9", {"length": 2000}, "no RULER-form task"),
        ("qa_1", {"length": 2000}, "file of questions"),
    ):
        with pytest.raises(InvalidOption, match=told):
            generate(task, codec, n=6, **options)


def test_questions_of_a_file_stand_among_other_documents(codec, tmp_path):
    rows = [{"question": f"Who is {i}?", "answers": [f"Person {i}x"], "documents": [f"{i} is Person {i}x. " * 9]}
            for i in range(30)]  # fmt: skip
    squad = {"data": [{"paragraphs": [{"context": row["documents"][0], "qas": [
        {"question": row["question"], "answers": [{"text": row["answers"][0]}], "is_impossible": False}]}
        for row in rows]}]}  # fmt: skip
    for name, written in (("qa.jsonl", "\n".join(map(json.dumps, rows))), ("squad.json", json.dumps(squad))):
        (tmp_path / name).write_text(written)
        for sample in generate("qa_1", codec, length=3000, n=3, data=tmp_path / name):
            assert sample.references[0] in sample.context
            assert sample.context.count("Document ") > 5
            assert score("qa_1", f"It is {sample.references[0]}!", sample.references) == 1
    (tmp_path / "few.jsonl").write_text("\n".join(map(json.dumps, rows[:2])))
    found = generate("qa_1", codec, length=1000, n=5, data=tmp_path / "few.jsonl")
    assert [one.index for one in found] == [0, 1, 2, 3, 4]
    assert [one.group for one in found] == [0, 1, 0, 1, 0], "answers to one question are not independent"


def test_files_of_others_or_cut_in_the_middle_of_a_line_are_read_as_json_lines_or_refused(tmp_path):
    file, row = tmp_path / "lines.jsonl", {"question": "Who?", "answers": ["Zoë"], "documents": ["Zo\u2028ë\u0085."]}
    facts = {"digest": "d", "task": "cwe", "length": 1, "index": 0, "group": 0, "method": "m", "references": ["ë"]}
    file.write_text(json.dumps(row, ensure_ascii=False), "utf-8-sig")
    assert (read_qa(file)[0].answers, read_qa(file)[0].documents) == (("Zoë",), ("Zo\u2028ë\u0085.",))
    file.write_text(json.dumps(facts | {"prediction": "\u2028ë"}, ensure_ascii=False), "utf-8-sig")
    assert [one.score for one in read_predictions(file, str)] == [1]
    for raw in (b'{"question": "Zo\xeb"}', b"[1]", b'{"answer_ids": 5}'):
        file.write_bytes(raw)
        with pytest.raises(Malformed, match=r"lines\.jsonl"):
            read_predictions(file, "".join)
    for part in ({"answers": "Ann"}, {"documents": "Ann is here."}, {"answers": [" "]}):
        file.write_text(json.dumps(row | part))
        read_qa.cache_clear()
        with pytest.raises(Malformed, match=r"lines\.jsonl"):
            read_qa(file)
    store, facts = tmp_path / "new" / "store.jsonl", {"digest": "d", "task": "fwe", "length": 9, "index": 0, "group": 0}
    one = Prediction(**facts, method="dense", prediction="a")
    append_answers(store, ["first", "second"], [one, one])
    whole = store.read_text()
    for length in (len(whole) - 1, len(whole) - 40, whole.index("}") + 1):  # at its end, in a word, behind an object
        store.write_text(whole[:length])
        append_answers(store, ["third"], [one])
        append_answers(store, ["fourth"], [one])
        assert {"first", "third", "fourth"} >= read_answers(store).keys() - {"second"} >= {"third", "fourth"}


FEW = {"tasks": ["niah_single_1"], "lengths": [600], "n": 2, "max_answer": 4}


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    return write_folder(tmp_path_factory.mktemp("tiny") / "Tiny Llama", positions=1024)


@pytest.fixture(scope="module")
def tiny(saved):
    codec = Tokenizer.from_folder(saved)
    engine = Engine(tiny_decoder(positions=1024), page=8)
    return EvaluatedModel(engine, codec, {"gates": HeadPlan.parse(TINY_PLAN)}, "tiny")


def asked(**more):
    return RulerSpec.model_validate(FEW | more)


def test_methods_are_fitted_to_the_bytes_of_dense_and_paired_with_it(tiny):
    methods = [
        {"method": "snapkv", "window": 8},
        {"method": "duo", "plan": "gates", "sink": 2, "recent": 5, "label": "duo, short"},
        {"method": "power", "block": 16},
        {"method": "razor", "plan": "gates"},
    ]
    report = run_ruler(tiny, asked(methods=methods, budgets=[0.7, 0.1], protocol="both"))
    cells = {(c.protocol, c.method, c.budget): c for c in report.cells}
    for protocol in ("agnostic", "aware"):
        dense = cells[protocol, "dense", None]
        assert (dense.n, dense.difference.mean, dense.equal, dense.kv_bytes) == (2, 0, 2, dense.kv_bytes_dense)
        for budget in (0.7, 0.1):
            held = cells[protocol, "snapkv", budget]
            assert 0.9 * budget < held.kv_bytes / held.kv_bytes_dense <= budget
            # The question alone holds more than a tenth.
            if (protocol, budget) != ("aware", 0.1):
                held = cells[protocol, "truncate", budget]
                assert held.kv_bytes / dense.kv_bytes == pytest.approx(budget, abs=0.03)
        assert cells[protocol, "duo, short", 0.7].kv_bytes <= 0.7 * dense.kv_bytes
        assert dense.kv_bytes_peak == dense.kv_bytes <= cells[protocol, "snapkv", 0.1].kv_bytes_peak
        plans = {cells[protocol, name, 0.7].plan for name in ("duo, short", "snapkv")}
        assert plans == {tiny.plans["gates"].digest, None}
        assert "take at least" in cells[protocol, "razor", 0.1].reason
        assert cells[protocol, "power", None].prefill_density < 1
        assert cells[protocol, "empty", None].kv_bytes < 0.7 * dense.kv_bytes
    assert {x.method for x in report.leaderboards} >= {"dense", "snapkv", "truncate", "empty"}
    assert "razor at 0.1" in leaderboard.write_page([report], "a machine")
    twice = leaderboard.write_page([report, report], "a machine", costs={"snapkv": 2.5})
    assert "| 2.50 |\n" in twice.partition(", aware")[0]
    assert "| 2.50 |\n" not in twice.rpartition(", agnostic")[2]
    assert Image.open(io.BytesIO(plots.draw_means(report))).format == "PNG"


def test_one_sample_of_two_lengths_counts_once_in_each(tiny, tmp_path):
    (tmp_path / "qa.jsonl").write_text('{"question": "Who?", "answers": ["Bo"], "documents": ["Bo."]}')
    spec = asked(methods=[], tasks=["qa_1"], lengths=[600, 900], n=1, max_answer=1)
    report = run_ruler(tiny, spec, qa=tmp_path / "qa.jsonl")
    assert [(cell.length, cell.n) for cell in report.cells if cell.method == "dense"] == [(600, 1), (900, 1)]


def test_informative_tasks_are_those_in_which_dense_scores(tiny, monkeypatch, tmp_path):
    names = ["niah_single_1", "niah_single_2"]
    monkeypatch.setattr(f"{RulerSpec.__module__}.OFFLINE", names)
    monkeypatch.setattr(run, "score", lambda task, _text, _references: float(task == "niah_single_2"))
    methods = [{"method": "razor", "plan": "gates"}, {"method": "knorm"}]
    spec = asked(methods=methods, budgets=[0.1], lengths=[900], tasks=["informative"], max_answer=1)
    report = run_ruler(tiny, spec, store=tmp_path / "store.jsonl")
    tasks = {name: [c.task for c in report.cells if c.method == name] for name in ("dense", "knorm", "razor")}
    assert tasks == {"dense": names, "knorm": names[1:], "razor": names[1:]}
    assert len((tmp_path / "store.jsonl").read_text().splitlines()) == 2 * (2 + 3)


def test_methods_that_read_densely_share_one_reading_of_a_context(tiny, monkeypatch):
    runner, lengths = tiny.engine.runner, []
    tiny.engine.prefix_cache.clear()
    read = runner.prefill
    monkeypatch.setattr(runner, "prefill", lambda s, ids, **more: (lengths.append(len(ids)), read(s, ids, **more))[1])
    methods = [{"method": name, **knobs} for name, knobs in (("snapkv", {"window": 8}), ("knorm", {}), ("tova", {}))]
    report = run_ruler(tiny, asked(methods=methods, budgets=[0.5, 0.25], n=1))
    assert all(cell.n == 1 for cell in report.cells)
    # Seven times the same context, and the ends of it twice; each but the first reads a page and a window at most.
    assert sum(lengths) < 600 + (0.5 + 0.25) * 600 + 7 * 16 + 1
    alone = run_ruler(tiny, asked(methods=methods[1:2], budgets=[0.25], n=1))
    knorm = ([c.mean for c in each.cells if (c.method, c.budget) == ("knorm", 0.25)] for each in (alone, report))
    assert len({tuple(means) for means in knorm}) == 1


def test_dense_answers_alike_under_both_protocols_and_no_address_is_kept_when_all_is_answered(tiny, tmp_path, saved):
    told = []
    for protocol in ("agnostic", "aware"):
        run_ruler(tiny, asked(methods=[], protocol=protocol, n=3, max_answer=8), store=tmp_path / protocol)
        rows = map(json.loads, (tmp_path / protocol).read_text().splitlines())
        told.append([row["prediction"] for row in rows if row["method"] == "dense"])
    assert told[0] == told[1]
    assert any(told[0])
    on = EvaluatedModel(Engine(tiny_decoder(positions=1024), page=8), Tokenizer.from_folder(saved), {}, "tiny")
    pool, methods = on.engine.pool, [{"method": "knorm"}, {"method": "snapkv", "window": 8}]
    run_ruler(on, asked(methods=methods, budgets=[0.5]))
    on.engine.prefix_cache.clear()
    pool.unreserve(pool.reserve(pool.addresses), pool.addresses)


def count_calls(on, counted):
    def do(work):
        counted.append(1)
        return on.do(work)

    return EvaluatedModel(on.engine, on.tokenizer, on.plans, on.name, do)


def test_a_run_goes_on_where_it_stopped_and_says_the_same(tiny, tmp_path):
    store, spec, counted = tmp_path / "store.jsonl", asked(methods=[{"method": "knorm"}], budgets=[0.5]), []
    whole = run_ruler(tiny, spec, store=store)
    lines = store.read_text().splitlines()
    store.write_text("\n".join(lines[:3]) + "\n")
    resumed = run_ruler(count_calls(tiny, counted), spec, store=store)
    assert counted
    assert len(store.read_text().splitlines()) == len(lines)
    of_whole, of_resumed = (sorted((c.method, c.task, c.mean, c.kv_bytes) for c in r.cells) for r in (whole, resumed))
    assert of_whole == of_resumed
    counted.clear()
    run_ruler(count_calls(tiny, counted), spec, store=store)
    assert not counted
    duo = asked(methods=[{"method": "duo", "plan": "gates", "sink": 2, "recent": 5}], budgets=[0.9])
    for roles, is_known in (([[1, 0], [0, 1]], False), ([[1, 0], [0, 1]], True), ([[0, 1], [1, 0]], False)):
        made = replace(tiny, plans={"gates": HeadPlan.parse({"schema": "head-plan/1", "roles": roles})})
        counted.clear()
        run_ruler(count_calls(made, counted), duo, store=store)
        assert is_known is not bool(counted)


def test_without_budgets_methods_run_as_their_knobs_say_and_all_tasks_are_those_without_a_file():
    methods = [LongctxOptions(method="knorm"), LongctxOptions(method="dense", label="plain")]
    found = [(one.name, one.budget) for one in list_variants(methods, [])]
    assert found == [("dense", None), ("empty", None), ("knorm", None), ("plain", None)]
    assert asked(tasks=["qa_1", "all"]).task_names() == [*OFFLINE, "qa_1"]
    with pytest.raises(InvalidOption, match="niah_single_9"):
        asked(tasks=["all", "niah_single_9"]).task_names()


def test_a_peers_answers_are_scored_here(tiny, tmp_path):
    rows = list(export_samples(tiny, asked()))
    assert all(len(row["context_ids"]) + len(row["question_ids"]) <= 600 for row in rows)
    facts = ("digest", "task", "length", "index", "group", "references")
    held = {"method": "kvpress snapkv", "budget": 0.5, "kv_bytes": 1, "kv_bytes_dense": 2}
    file = tmp_path / "peer.jsonl"
    with file.open("w") as out:
        for row in rows:
            told = {k: row[k] for k in facts} | held | {"answer_ids": tiny.tokenizer.encode(row["references"][0])}
            out.write(json.dumps(told) + "\n")
    found = read_predictions(file, lambda ids: tiny.tokenizer.decode(ids, special=False))
    report = run_ruler(tiny, asked(methods=[]), extra=found)
    cell = next(c for c in report.cells if c.method == "kvpress snapkv")
    assert (cell.mean, cell.better) == (1, 2)
    assert next(x for x in report.leaderboards if x.method == "kvpress snapkv").nominal
    other = [one.model_copy(update={"budget": 0.25, "digest": "another seed's"}) for one in found]
    for spec, extra in ((asked(seed=7), found), (asked(protocol="aware"), found), (asked(), found + other)):
        with pytest.raises(InvalidOption, match=r"kvpress snapkv .* no sample of this run"):
            run_ruler(tiny, spec.model_copy(update={"methods": []}), extra=extra)


@pytest.mark.parametrize("methods", [
    [{"method": "snapkv", "window": 8}, {"method": "snapkv", "window": 32}],
    [{"method": "dense", "kv_cache_dtype": "q8"}], [{"method": "knorm", "label": "truncate"}],
])  # fmt: skip
def test_two_methods_of_one_name_are_not_taken_for_one(methods):
    given = [LongctxOptions.model_validate(one) for one in methods]
    with pytest.raises(InvalidOption, match="Two methods are called"):
        list_variants(given, [0.5])
    labelled = [one.model_copy(update={"label": f"variant {i}"}) for i, one in enumerate(given)]
    assert [one.name for one in list_variants(labelled, [0.5, 0.5])][3:] == [f"variant {i}" for i in range(len(given))]


@pytest.mark.parametrize(("page", "recent", "full"), [(64, 128, 5), (16, 128, 9), (1, 128, 10), (64, 47, 17)])
def test_pages_decide_how_many_full_heads_a_budget_buys(page, recent, full):
    """Over 960 tokens at a quarter of dense's bytes, on a model with SmolLM2's 90 key/value heads."""
    sizes = {"vocab": 8, "width": 18, "layers": 30, "heads": 9, "kv_heads": 3, "hidden": 8, "positions": 1024}
    net = llama(**sizes, norm_eps=1e-5, head_dim=2).eval()
    scores = [[(3 * layer + g) / 90 for g in range(3)] for layer in range(30)]
    plan = HeadPlan.parse({"schema": "head-plan/1", "roles": [[1, 1, 1]] * 30, "scores": {"duo_gate": scores}})
    options = {"method": "duo", "plan": "gates", "sink": 16, "recent": recent}
    variant = MethodVariant("duo", 0.25, LongctxOptions.model_validate(options))
    engine = Engine(net, page=page)
    policy = variant.policy(engine, {"gates": plan}, 960)
    assert int(policy.full.sum()) == full
    assert policy.pages(960, 0, page) * engine.pool.page_bytes <= 0.25 * engine.dense_bytes(960)


def test_it_is_served_as_json_and_picture_and_a_tenant_compares_by_its_own_head_plans_alone(saved, tmp_path):
    save_plan(HeadPlan.parse(TINY_PLAN), ObjectStore.open(tmp_path.as_uri()).of_tenant("team"), "tiny-llama", "ours")
    duo = {"method": "duo", "plan": "ours", "sink": 2, "recent": 8}
    body, told = FEW | {"n": 1, "methods": [{"method": "streamingllm"}], "budgets": [0.5]}, {}
    with Server(app_of(saved, tmp_path)) as server, httpx2.Client(base_url=server.url, timeout=120) as http:
        report = http.post("/v1/longctx/ruler", json=body).json()
        assert report["schema"] == "ruler-report/1"
        assert {c["method"] for c in report["cells"]} == {"dense", "empty", "truncate", "streamingllm"}
        drawn = http.post("/v1/longctx/ruler", json=body, headers={"accept": "image/png"})
        assert drawn.headers["content-type"] == "image/png"
        grid = {"lengths": [150, 170], "depths": [0, 100], "steps": 3}
        assert http.post("/v1/longctx/needle", json=grid).json()["lengths"] == [150, 170]
        drawn = http.post("/v1/longctx/needle", json=grid, headers={"accept": "image/png"})
        assert Image.open(io.BytesIO(drawn.content)).format == "PNG"
        assert http.post("/v1/longctx/ruler", json=body | {"tasks": ["cats"]}).status_code == 422
        assert http.post("/v1/longctx/ruler", json=body | {"n": 0}).status_code == 422
        tasks = http.get("/v1/longctx/ruler/tasks").json()
        assert [t["name"] for t in tasks if not t["offline"]] == ["qa_1", "qa_2"]
        body |= {"methods": [duo], "budgets": [0.9]}
        for tenant in ("team", "local"):
            told[tenant] = http.post("/v1/longctx/ruler", json=body, headers={"x-fovea-tenant": tenant}).text
    assert "no head plan" not in told["team"]
    assert "no head plan 'ours'" in told["local"]


def test_the_command_writes_report_predictions_and_picture(saved, tmp_path, capsys):
    ruler, out = expand_options(cli.ruler), tmp_path / "ruler.json"
    some = {"tasks": "niah_single_1, niah_single_1", "lengths": "600", "n": 1, "budgets": "0.5"}
    ruler(model=str(saved), method=["knorm"], out=out, **some)
    assert "agnostic\t600\tknorm\t0.5\t" in capsys.readouterr().out
    assert json.loads(out.read_text())["schema"] == "ruler-report/1"
    assert out.with_suffix(".png").is_file()
    ruler(compare=(out, out), form="table")
    assert "+0.00" in capsys.readouterr().out
    with pytest.raises(Malformed, match="is not a report"):
        ruler(compare=(out, saved / "config.json"))
    with pytest.raises(InvalidOption, match="n: Input should be greater than or equal to 1"):
        ruler(model=str(saved), **some | {"n": 0})
    with pytest.raises(InvalidOption, match="lies next"):
        ruler(model=str(saved), out=out.with_suffix(".jsonl"), **some)
    ruler(model=str(saved), export=tmp_path / "samples.jsonl", **some)
    assert len((tmp_path / "samples.jsonl").read_text().splitlines()) == 1


@pytest.mark.timed("Times of a method that reads one token and of one that reads everything twice are compared.")
def test_costs_are_told_in_times_that_dense_takes(tiny):
    costs = measure_costs(tiny, asked(methods=[{"method": "kvzip"}]), rounds=5)
    assert costs["dense"] == 1
    assert costs["empty"] < 1 < costs["kvzip"]


def test_a_plot_shows_the_best_of_the_methods_measured_at_most_budgets():
    fixed = {
        "protocol": "aware", "length": 9, "informative": True, "tasks": [], "n": 1, "bytes": 1, "low": 0, "high": 1,
        "difference": {"mean": 0, "low": 0, "high": 0}, "worse": 0, "better": 0, "retained": 1, "seconds": 0,
    }  # fmt: skip
    means = {"a": [0.5, 0.1], "b": [0.2, 0.9], "once": [1.0], "dense": [None]}
    shown = [
        Leader(method=name, budget=None if mean is None else at + 1, mean=mean or 1.0, **fixed)
        for name, row in means.items()
        for at, mean in enumerate(row)
    ]
    assert (plots.list_best(shown), plots.list_best(shown, 1)) == (["b", "a", "once"], ["b"])


def test_models_that_think_are_told_not_to(tmp_path):
    switch = "{% if enable_thinking is defined and not enable_thinking %}<think></think>{% endif %}"
    template = "{% for m in messages %}{{ m.content }}{% endfor %}<assistant>" + switch
    codec = Tokenizer.from_folder(write_folder(tmp_path / "model", template=template))
    [sample] = generate("niah_single_1", codec, length=800, n=1)
    told = codec.decode(render(codec, sample).question_ids)
    assert told == f"{sample.question}<assistant><think></think>{sample.answer_prefix}"
    assert sample.tokens + sample.max_new_tokens <= 800
