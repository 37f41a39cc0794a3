"""The command line as people use it: against a real gateway, with files, pipes, JSON and mistakes."""

import csv
import errno
import json
import sys
from types import SimpleNamespace

import pytest
from PIL import Image
from starlette.applications import Starlette
from starlette.responses import Response
from starlette.routing import Route

from fovea.api.longctx import LongctxUsage
from fovea.api.text import PromptTokensDetails, Usage
from fovea.call import Call
from fovea.cli.commands import chat as chat_verb
from fovea.cli.commands.chat import list_deviations, summarise_usage
from services.gateway.tests.stage import running
from services.gateway.tests.stub_service import photograph
from tests.harness.serving import serve_in_thread

PICTURE = photograph()


@pytest.fixture
def folder(folder):
    (folder / "b.jpeg").write_bytes(PICTURE)
    (folder / "notes.txt").write_text("not a picture")
    return folder


def lines(out):
    return [json.loads(line) for line in out.splitlines()]


def test_models_are_listed_narrowed_and_read_by_programs_and_a_card_names_facts_and_options(fovea, folder):
    code, out, _ = fovea("models")
    row = next(line for line in out.splitlines() if line.startswith("disc\t"))
    assert code == 0
    assert row.split("\t") == ["disc", "segment", "stub", "yes", "0.873 synthetic / – dice_at_half"]
    code, out, _ = fovea("models", "--task", "segment", "--json")
    told = [(entry["id"], entry["ready"]) for entry in lines(out)]
    assert (code, told) == (0, [("disc", True), ("disc-large", False)])
    assert '"q:100:3 :smile:"' in fovea("run", "judge", "--prompt", "q:100:3 :smile:")[1]  # no emoji
    code, _, err = fovea("models", "--task", "paint")
    assert (code, "does 'paint'. Tasks: " in err) == (4, True)
    _, out, _ = fovea("models", "disc")
    for words in ("as-released", "Not a medical device.", "0.873 here, 0.912 in the paper", "--min-area", "CVPR 2021"):
        assert words in out
    assert lines(fovea("models", "disc", "--json")[1])[0]["schema"]["properties"]["threshold"]["default"] == 0.5
    listed = list(csv.DictReader(fovea("models", "--format", "csv")[1].splitlines()))
    assert {"model": "disc", "task": "segment"}.items() <= next(row for row in listed if row["model"] == "disc").items()
    rows = list(csv.reader(fovea("models", "disc", "--format", "csv")[1].splitlines()))
    assert {"model", "summary", "task", "--threshold"} <= dict(rows).keys()
    for form in ("csv", "tsv"):
        code, out, said = fovea("segment", str(folder / "a.jpg"), "--format", form)
        assert (code, out, "--format json" in said) == (2, "", True)


def test_an_unknown_model_and_a_gateway_that_is_not_there_are_one_line(fovea):
    for words, code, told in (
        (["nope"], 4, ("nope", "disc")), (["--url", "http://127.0.0.1:9"], 6, ("http://127.0.0.1:9", "make run"))
    ):  # fmt: skip
        got, out, err = fovea("models", *words)
        assert (got, out, len(err.splitlines()), [word in err for word in told]) == (code, "", 1, [True, True])
        name = "not_found" if code == 4 else "not_ready"
        for form in (["--json"], ["--format", "json"], ["--format=json"]):
            assert json.loads(fovea("models", *words, *form)[1])["error"]["code"] == name


def test_a_folder_is_segmented_with_options_as_the_schema_types_them_and_everything_is_written(fovea, folder, stage):
    assert fovea("segment", folder, "-o", folder / "out", "--threshold", "0.4")[0] == 0
    written = {f"{stem}.{kind}" for stem in "ab" for kind in ("json", "mask.png", "overlay.jpg")}
    assert {path.name for path in (folder / "out").iterdir()} == written
    told = json.loads((folder / "out/a.json").read_text())
    assert (told["width"], bool(told["contours"])) == (320, True)
    with Image.open(folder / "out/a.mask.png") as mask:
        assert mask.size == (320, 240)
        assert set(mask.get_flattened_data() if hasattr(mask, "get_flattened_data") else mask.getdata()) == {0, 255}
    fovea("segment", folder / "a.jpg", "-o", folder, "--threshold", "0.25", "--keep-largest", "--min-area=7")
    sent = stage.stub.seen[-1]["options"]
    assert (sent["threshold"], sent["keep_largest"], sent["min_area"], sent["model"]) == ("0.25", "true", "7", "disc")


def test_one_bad_picture_does_not_stop_the_others_in_words_or_json_lines(fovea, folder):
    (folder / "broken.png").write_bytes(b"nope")
    code, out, err = fovea("segment", folder, folder / "none.png", "-o", folder / "out")
    assert (code, out.count("10.7 % in 1 region")) == (1, 2)
    for words in ("2 of 4 failed", "broken.png: The bytes are not a picture.", "none.png: There is no file"):
        assert words in err
    unsure = fovea("segment", folder / "a.jpg", "-o", folder / "out", "--threshold", "0.99")[2]
    assert "a.jpg: [Nothing] is this sure." in unsure
    code, out, err = fovea("segment", folder / "*.*g", "-o", folder / "out", "--json")
    told = {line["file"].rpartition("/")[2]: line for line in lines(out)}
    assert (code, err, told.keys()) == (1, "", {"a.jpg", "b.jpeg", "broken.png"})
    assert told["broken.png"]["error"]["code"] == "bad_input"
    assert told["a.jpg"]["written"][0].endswith("out/a.json")


def test_a_folder_that_can_not_be_written_and_a_full_disk_are_one_line_on_standard_error(fovea, folder, monkeypatch):
    code, _, err = fovea("segment", folder / "a.jpg", "-o", folder / "a.jpg/out")
    assert (code, err.count("\n"), "Not a directory" in err) == (2, 1, True)

    def fill(path, _):
        raise OSError(errno.ENOSPC, "No space left on device", str(path))

    monkeypatch.setattr("pathlib.Path.write_bytes", fill)
    for form in ([], ["--json"]):
        code, out, err = fovea("segment", folder / "a.jpg", "-o", folder / "out", *form)
        assert (code, out, err.count("\n"), "No space left on device" in err) == (6, "", 1, True)


def test_names_may_be_long_or_in_another_encoding_and_signs_that_an_old_one_lacks_are_escapes(fovea, folder):
    for name in ("x" * 251, "x" * 250 + "y", "ü" * 125):
        (folder / f"{name}.jpg").write_bytes(PICTURE)
    code, out, _ = fovea("segment", folder, "-o", folder / "out")
    assert (code, len(out.splitlines()), len(list((folder / "out").iterdir()))) == (0, 5, 15)
    odd = (folder / "a.jpg").rename(folder / "caf\udce9.jpg")
    code, out, _ = fovea("segment", odd, "-o", folder / "out")
    assert (code, out.startswith(f"{odd}: "), (folder / "out/caf_.json").exists()) == (0, True, True)
    plain = (folder / "b.jpeg").rename(folder / "coco.jpeg")
    assert fovea("segment", odd, plain, "--coco", "part", "-o", folder / "data")[0] == 0
    held = json.loads((folder / "data/coco.json").read_text())
    assert [image["file_name"] for image in held["images"]] == ["caf\udce9.jpg", "coco.jpeg"]
    assert json.loads((folder / "data/coco-2.json").read_text())["width"] == 320
    assert "/x[1].json\n" in fovea("run", "segment", plain, "-o", folder / "x[1].json")[2]
    sys.stdout.reconfigure(encoding="latin-1")
    code, out, _ = fovea("models")
    assert (code, "0.873 synthetic / \\u2013" in out) == (0, True)


def test_a_dash_reads_standard_input_a_url_is_fetched_here_and_one_that_holds_nothing_reported(
    fovea, tmp_path, site, stage
):
    code, out, _ = fovea("segment", "-", "-o", tmp_path, stdin=PICTURE)
    assert (code, "stdin" in out, (tmp_path / "stdin.mask.png").exists()) == (0, True, True)
    assert fovea("segment", "-", "-o", tmp_path)[0] == 3  # it is empty
    code, _, _ = fovea("segment", f"{site}/dir/polyp.jpg?x=1", "-o", tmp_path)
    assert (code, (tmp_path / "polyp.json").exists(), stage.stub.seen[-1]["bytes"]) == (0, True, len(PICTURE))
    code, _, err = fovea("segment", f"{site}/none", "http://127.0.0.1:9/x.png", "-o", tmp_path)
    assert code == 4  # both failed alike
    assert "answered 404" in err
    assert "can't be downloaded" in err


@pytest.fixture
def site():
    async def find_picture(_request):
        return Response(PICTURE)

    with serve_in_thread(Starlette(routes=[Route("/dir/polyp.jpg", find_picture)])) as url:
        yield url


@pytest.mark.parametrize(("words", "code", "said"), [
    ("segment none*.png", 4, "No file matches"), ("segment empty", 4, ".tiff"),
    ("segment a.jpg --bogus 3", 2, "no option --bogus"), ("segment a.jpg --thresold=0.2", 2, "--threshold?"),
    ("segment a.jpg --threshold 7", 2, "--threshold"), ("segment a.jpg --normalise median", 2, "median"),
    ("segment a.jpg --model nope", 4, "nope"), ("run paint", 4, "Tasks: chat, segment, classify, judge."),
    ("run classify a.jpg b.jpeg", 2, "2 files were given; this model takes 1."),
    ("segment a.jpg --include mask", 2, "sets include itself"), ("segment a.jpg --image x", 2, "fovea run segment"),
    ("run segment a.jpg --image x", 2, "given twice"), ("run segment a.jpg --job -o x", 2, "fovea jobs result"),
    ("run classify a.jpg --format csv", 2, "--format json"), ("judge agreement bad.gz a.jpg", 3, "can't be read"),
    ("run classify a.jpg --option top_k", 2, "has no value"), ("run classify none.jpg", 4, "no file"),
])  # fmt: skip
def test_mistakes_are_answered_before_any_picture_is_sent(fovea, folder, monkeypatch, stage, words, code, said):
    monkeypatch.chdir(folder)
    (folder / "empty").mkdir()
    (folder / "bad.gz").write_bytes(b"\x1f\x8b\x08\0\0\0\0\0\0\xff\xff\xff")
    before = len(stage.stub.seen)
    got, _, err = fovea(*words.split())
    assert (got, said in err, len(stage.stub.seen)) == (code, True, before)


def test_a_chat_streams_reads_standard_input_and_is_whole_as_json(fovea):
    assert fovea("chat", "one", "two")[:2] == (0, "You said: one two\n")
    assert fovea("chat", stdin=b"from a pipe\n")[1] == "You said: from a pipe\n"
    assert fovea("chat", "Summarise:", "-", stdin=b"a text")[1] == "You said: Summarise: a text\n"
    for stdin, words in (("", "There is no prompt"), (b"caf\xe9", "can't be read as text")):
        code, _, err = fovea("chat", stdin=stdin)
        assert (code, words in err) == (3, True)
    told = lines(fovea("chat", "hi", "--json")[1])
    assert (told[0]["choices"][0]["message"]["content"], told[0]["usage"]["completion_tokens"]) == ("You said: hi", 3)


def test_methods_are_listed_and_chat_hands_options_and_knobs_on_and_leaves_the_others_to_the_model(fovea, stage):
    fovea("chat", "hi", "-s", "Be brief.", "-t", "0", "-n", "2", "--seed", "5", "--model", "parrot")
    sent = stage.stub.seen[-1]
    assert [turn["role"] for turn in sent["messages"]] == ["system", "user"]
    wanted = {"temperature": 0, "max_tokens": 2, "seed": 5, "model": "parrot", "stream": True}
    assert {key: sent.get(key) for key in (*wanted, "top_p")} == {**wanted, "top_p": None}
    fovea("chat", "hi", "--method", "nearby", "-K", "near=3", "-K", "echo=true", "-K", "kv_ratio=0.5")
    assert stage.stub.seen[-1]["longctx"] == {"method": "nearby", "near": 3, "echo": True, "kv_ratio": 0.5}
    code, _, err = fovea("chat", "hi", "--method", "nearby", "-K", "neer=3")
    assert (code, "Did you mean --near?" in err) == (2, True)
    fovea("chat", "hi")
    assert "longctx" not in stage.stub.seen[-1]
    fovea("chat", "hi", "-K", "blocks=2", "-K", "offload=cpu")  # of a model with attention of its own
    assert stage.stub.seen[-1]["longctx"] == {"blocks": 2, "offload": "cpu"}
    code, out, _ = fovea("methods")
    assert (code, "nearby" in out, "Hears the last words." in out) == (0, True, True)
    _, out, _ = fovea("methods", "nearby")
    assert ("-K near=" in out, "Words that are heard. [8]" in out) == (True, True)
    assert lines(fovea("methods", "--json")[1])[1]["name"] == "nearby"
    assert "Methods: dense, nearby." in fovea("methods", "far")[2]


@pytest.mark.parametrize(("options", "second"), [
    ((), ["S", "first", "You said: first", "second"]), (("--session", "s"), ["second"]),
])  # fmt: skip
def test_a_conversation_remembers_clears_and_ends(fovea, stage, monkeypatch, options, second):
    typed = iter(["first", "", "second", "/clear", "third"])

    def read(_prompt):
        if (line := next(typed, None)) is None:
            raise EOFError
        return line

    monkeypatch.setattr("builtins.input", read)
    monkeypatch.setattr(chat_verb, "_at_terminal", lambda: True)
    before = len(stage.stub.seen)
    opened = Call("GET", "/v1/models", lambda _answer: SimpleNamespace(id="new"))
    monkeypatch.setattr(chat_verb, "open_session", lambda _model: opened)
    code, out, err = fovea("chat", "--system", "S", *options)
    turns = [[turn["content"] for turn in body["messages"]] for body in stage.stub.seen[before:]]
    assert (code, out.splitlines()) == (0, ["You said: first", "You said: second", "You said: third"])
    assert turns == [["S", "first"], second, ["S", "third"]]
    asked = [body.get("session_id") for body in stage.stub.seen[before:]]
    assert asked == (["s", "s", "new"] if options else [None] * 3)
    assert ("session new" in err) is bool(options)


def test_any_task_takes_files_and_its_answer_can_be_a_picture(fovea, folder, stage):
    code, out, _ = fovea("run", "classify", folder / "a.jpg", "--top-k", "2", "-O", "prompt=a b")
    assert (code, [row["class_name"] for row in json.loads(out)["top_k"]]) == (0, ["a", "b"])
    assert stage.stub.seen[-1]["options"] == {"model": "patches/tiny", "top_k": "2", "prompt": "a b"}
    code, _, err = fovea("run", "segment", folder / "a.jpg", "--accept", "image/png", "-o", folder / "x/over.png")
    assert (code, "wrote" in err, (folder / "x/over.png").read_bytes().startswith(b"\x89PNG")) == (0, True, True)
    assert fovea("run", "segment", folder / "a.jpg", "--accept", "image/png")[1].startswith("\udc89PNG")


def test_a_job_is_submitted_watched_and_its_result_written_or_its_failure_the_exit_code(
    fovea, folder, stage, monkeypatch
):
    job = lines(fovea("run", "segment", folder / "a.jpg", "--job")[1])[0]["id"]
    code, out, _ = fovea("jobs", "watch", job)
    assert (code, "succeeded" in out) == (0, True)
    _, out, _ = fovea("jobs", "list")
    assert out.splitlines()[0].split("\t")[:3] == [job, "succeeded", "/v1/segment"]
    forms = {"name": job, "{status}\\t{id}": f"succeeded\t{job}", "{status} {error.detail}{note}": "succeeded "}
    for form, said in forms.items():
        assert fovea("jobs", "list", "--format", form, "--limit", "1")[:2] == (0, f"{said}\n")
    assert fovea("jobs", "list", "--format", "table")[1].split()[:2] == ["id", "status"]
    assert lines(fovea("jobs", "list", "--format", "json")[1])[0]["id"] == job
    for form, said in (("xml", "not a form"), ("{nope}", "no field 'nope'. Fields: id, service")):
        code, out, err = fovea("jobs", "list", "--format", form)
        assert (code, out, said in err) == (2, "", True)
    fovea("jobs", "result", job, "-o", folder / "r.json")
    assert json.loads((folder / "r.json").read_text())["width"] == 320
    assert json.loads(fovea("jobs", "result", job)[1])["width"] == 320
    (folder / "broken.png").write_bytes(b"nope")
    job = lines(fovea("run", "segment", folder / "broken.png", "--job")[1])[0]["id"]
    code, out, _ = fovea("jobs", "watch", job, "--json")
    assert (code, lines(out)[-1]["status"]) == (1, "failed")
    monkeypatch.setattr(stage.queue, "step_s", 60)  # it waits until it is cancelled
    for verb, status in (("retry", "queued"), ("cancel", "cancelled"), ("get", "cancelled")):
        assert lines(fovea("jobs", verb, job, "--json")[1])[0]["status"] == status
    assert job in {told["id"] for told in lines(fovea("jobs", "list", "--json")[1])}
    assert lines(fovea("jobs", "delete", job, "--json")[1])[0]["status"] == "cancelled"
    assert (fovea("jobs", "get", job)[0], fovea("jobs", "delete", "..")[0]) == (4, 2)


def test_the_key_comes_from_the_environment_or_the_flag(fovea, tmp_path, monkeypatch):
    with running(tmp_path, auth="keys") as locked:
        monkeypatch.setenv("FOVEA_URL", locked.url)
        assert "requires an API key" in fovea("models")[2]
        _, text = locked.keys.add("lab", ("infer", "jobs"))
        assert fovea("models", "--key", text)[0] == 0
        monkeypatch.setenv("FOVEA_API_KEY", text)
        assert fovea("models")[0] == 0
        monkeypatch.setenv("FOVEA_API_KEY", "fovea_wrong")
        code, _, err = fovea("models")
        assert (code, "fovea_wrong" in err) == (5, False)


def test_the_line_below_an_answer_says_what_it_cost_and_what_is_left():
    longctx = LongctxUsage(
        method="duo", knobs={}, kv_bytes=50, kv_bytes_dense=100, kv_ratio=0.5, prefill_density=1, full_steps=0,
        backend="cpu_ext", cached_tokens=1200, preempted=0, fallback=None, context_left=6000,
        budget_missed="duo can't keep within 40 bytes.",
    )  # fmt: skip
    facts = {"prompt_tokens": 2000, "completion_tokens": 10, "total_tokens": 2010, "longctx": longctx}
    usage = Usage(**facts, prompt_tokens_details=PromptTokensDetails(cached_tokens=1200))
    assert summarise_usage(usage, 2.0) == (
        "2,000 tokens in (1,200 from the cache) · 10 out · 5.0 tokens per second"
        " · duo attention, 50% of dense memory · duo can't keep within 40 bytes · 6,000 tokens of context left"
    )
    assert list_deviations(usage) == ["duo can't keep within 40 bytes."]
