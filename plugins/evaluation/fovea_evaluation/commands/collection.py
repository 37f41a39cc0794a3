"""`fovea judge import`: a public test collection becomes topics, passages, qrels and a BM25 run."""

import codecs
from contextlib import suppress
from pathlib import Path
from typing import Annotated

import typer
from rich.markup import escape

from fovea.cli.commands.judge.options import build_call
from fovea.cli.common_options import Connection
from fovea.cli.job_progress import run_as_job
from fovea.cli.output import Screen
from fovea.cli.text_files import read_file
from fovea.errors import InvalidOption


def import_collection(
    documents: Annotated[Path, typer.Argument(help="Documents as the collection has them; may be .gz.")],
    topics: Annotated[Path, typer.Argument(help="Topics as the collection has them.")],
    relevance: Annotated[Path, typer.Argument(help="Relevance lines or lists.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder to write to.")],
    others: Annotated[int, typer.Option(help="Label this many of BM25's best unjudged passages per topic as 0.")] = 0,
    grades: Annotated[
        list[str] | None, typer.Option("--grade", help="CODE=GRADE; default: 1=3 2=2 3=1 4=1 5=0.")
    ] = None,
    *,
    gateway: Connection,
) -> None:
    """Import a public test collection: topics.tsv, passages.jsonl, qrels.txt and a BM25 run.

    The files may have the form of Cranfield, CISI, MED, CACM, ADI, NPL, LISA, TIME, TREC or BEIR.
    """
    files = {"documents": documents, "topics": topics, "relevance": relevance}
    texts = {name: _read_old_text(path) for name, path in files.items()}
    body = {
        **{name: text for name, (text, _) in texts.items()},
        "others": others,
        "grades": dict(_parse_grade(pair) for pair in grades) if grades else None,
    }
    screen = Screen(as_json=False)
    with gateway.open() as client:
        found = run_as_job(client, screen, build_call("collection", body))
    output.mkdir(parents=True, exist_ok=True)
    names = {"topics": "topics.tsv", "passages": "passages.jsonl", "qrels": "qrels.txt", "run": "bm25.trec"}
    for field, name in names.items():
        (output / name).write_text(found[field], "utf8")
        screen.note(f"wrote {output / name} ({found[field].count(chr(10))} lines)", markup=False)
    old = [
        f"{files[name].name} is not UTF-8; it was read as {kind}."
        for name, (_, kind) in texts.items()
        if kind != "UTF-8"
    ]
    for note in [*old, *found["notes"]]:
        screen.note(f"[yellow]{escape(note)}[/]")


def _read_old_text(path: Path) -> tuple[str, str]:
    """Read a text file of any age, and its encoding: UTF-8 with or without its mark, else Windows' or Latin-1."""
    raw = read_file(path)
    if raw.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        return raw.decode("utf-16", errors="replace"), "UTF-16"
    for encoding, kind in (("utf-8-sig", "UTF-8"), ("cp1252", "Windows-1252")):
        with suppress(UnicodeDecodeError):
            return raw.decode(encoding), kind
    return raw.decode("latin1"), "Latin-1"


def _parse_grade(pair: str) -> tuple[str, int]:
    code, _, grade = pair.partition("=")
    try:
        return str(int(code)), int(grade)
    except ValueError as error:
        raise InvalidOption(f"--grade {pair} is not CODE=GRADE.", hint="For example --grade 1=3.") from error
