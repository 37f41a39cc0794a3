"""RULER-form samples and scores against published cases, and rules that solve every sample from its text."""

import json
import re
from collections import Counter
from pathlib import Path

import pytest

from fovea.errors import FoveaError, InvalidOption
from fovea_lab.ruler.samples.generation import generate
from fovea_lab.ruler.samples.placement import DEPTHS, cwe_rule, fit, fwe_counts, place
from fovea_lab.ruler.samples.sample import render
from fovea_lab.ruler.samples.task import OFFLINE, TASKS
from fovea_lab.ruler.samples.variable_chains import resolve
from fovea_lab.ruler.scoring import score, string_match_all, string_match_part
from fovea_lab.ruler.statistics import bootstrap, compare_paired

GOLDEN = Path(__file__).parent / "golden/ruler"


def golden(name):
    return json.loads((GOLDEN / f"{name}.json").read_text("utf8"))


def test_scores_are_the_published_ones():
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


def test_chains_are_resolved_as_published():
    for case in golden("chains"):
        assert resolve(case["text"], case["value"]) == case["variables"], case["why"]


def test_counts_and_places_are_the_published_ones():
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


def test_intervals_are_the_published_ones():
    for case in golden("statistics"):
        mean = bootstrap(case["values"], groups=case["groups"], draws=4000)
        assert mean.mean == pytest.approx(case["mean"], abs=1e-9)
        assert (mean.low, mean.high) == pytest.approx(case["interval"], abs=0.03)
        both = compare_paired(case["values"], case["dense"], groups=case["groups"], draws=4000)
        assert both.difference.mean == pytest.approx(case["difference"], abs=1e-9)
        assert (both.difference.low, both.difference.high) == pytest.approx(case["difference_interval"], abs=0.03)
        assert (both.worse, both.better, both.equal) == (case["worse"], case["better"], case["equal"])


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


def test_needles_are_the_same_at_every_length(codec):
    for task in ("niah_single_3", "niah_multikey_2", "niah_multiquery"):
        short, long = (generate(task, codec, length=n, n=1)[0] for n in (2500, 4000))
        assert (short.question, short.references, short.depths) == (long.question, long.references, long.depths)
        assert len(short.context) < len(long.context)


def test_several_questions_share_a_context(codec):
    samples = generate("niah_multikey_1", codec, length=3000, n=6, questions=4)
    assert [sample.group for sample in samples] == [0, 0, 0, 0, 1, 1]
    assert (len({sample.context for sample in samples}), len({sample.question for sample in samples[:4]})) == (2, 4)
    with pytest.raises(InvalidOption, match="4 question"):
        generate("niah_multikey_1", codec, length=3000, n=6, questions=5)


def test_what_can_not_be_made_is_refused(codec):
    with pytest.raises(InvalidOption, match="smallest prompt"):
        generate("niah_single_1", codec, length=200, n=1)
    with pytest.raises(InvalidOption, match="no RULER-form task"):
        generate("niah_single_9", codec, length=2000, n=1)
    with pytest.raises(InvalidOption, match="file of questions"):
        generate("qa_1", codec, length=2000, n=1)


def test_questions_of_a_file_stand_among_other_documents(codec, tmp_path):
    rows = [{"question": f"Who is {i}?", "answers": [f"Person {i}x"], "documents": [f"{i} is Person {i}x. " * 9]}
            for i in range(30)]  # fmt: skip
    file = tmp_path / "qa.jsonl"
    file.write_text("\n".join(map(json.dumps, rows)))
    squad = {"data": [{"paragraphs": [{"context": row["documents"][0], "qas": [
        {"question": row["question"], "answers": [{"text": row["answers"][0]}], "is_impossible": False}]}
        for row in rows]}]}  # fmt: skip
    other = tmp_path / "squad.json"
    other.write_text(json.dumps(squad))
    for path in (file, other):
        for sample in generate("qa_1", codec, length=3000, n=3, data=path):
            assert sample.references[0] in sample.context
            assert sample.context.count("Document ") > 5
            assert score("qa_1", f"It is {sample.references[0]}!", sample.references) == 1
