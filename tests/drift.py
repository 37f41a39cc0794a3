"""Generated files that are committed must be what their generators write: `python -m tests.drift [--write]`."""

import json
import pathlib
import sys
import tomllib
import typing
from collections.abc import Callable, Iterator
from importlib.metadata import EntryPoint
from typing import Any

from loadtests.bench.freshness import explain_staleness
from tests.figures import complete_card, copied_by_hand, included_figures

ROOT = pathlib.Path(__file__).parents[1]


def pages_of_packages() -> Iterator[tuple[pathlib.Path, str]]:
    """Files whose generators stand where their subjects are."""
    from fovea_docs.model_pages import render_pages
    from loadtests.bench.__main__ import PAGE, render_page
    from loadtests.gpu import cost_model
    from loadtests.gpu.ahead_of_time import results
    from loadtests.simulation import page
    from shared.export import tensorrt_operators
    from shared.rpc.generate import generate_stubs
    from tests.device import paths
    from tests.mutation.results import mutation_page

    yield from generate_stubs()
    yield from render_pages(ROOT / "docs/models", complete_card)
    yield PAGE, render_page()
    yield from page.render_page()
    yield from mutation_page()
    yield from included_figures()
    yield ROOT / "docs/gpu-methods.md", paths.render_page()
    yield ROOT / "docs/gpu-kernels.md", results.render_page()
    yield ROOT / "docs/gpu-cost.md", cost_model.render_page()
    yield ROOT / "docs/tensorrt-operators.md", tensorrt_operators.render_page()


def settings_page() -> Iterator[tuple[pathlib.Path, str]]:
    from shared.settings import RENAMED, Settings

    lines = [
        "# Settings",
        "",
        "Every setting is an environment variable, read once when a process starts. A request, an API key or a command",
        "line option may override some of them. In the chart, `settings` sets them for all pods, without the prefix.",
        "Old names work for one more release and are warned of; where both are set, the new one counts.",
        "",
        "| name | type | default | meaning | old name |",
        "|---|---|---|---|---|",
    ]
    for name, field in Settings.model_fields.items():
        old = f"`FOVEA_{RENAMED[name].upper()}`" if name in RENAMED else ""
        own, meaning = field.validation_alias or f"FOVEA_{name.upper()}", " ".join((field.description or "").split())
        cells = (f"`{own}`", _type_name(field.annotation), _default(field.default), meaning, old)
        lines.append("| " + " | ".join(str(cell).replace("|", "\\|") for cell in cells) + " |")
    yield ROOT / "docs/settings.md", "\n".join(lines) + "\n"


def compatibility_page() -> Iterator[tuple[pathlib.Path, str]]:
    """Each field of OpenAI's and vLLM's requests, and what becomes of it here."""
    from fovea.api.embeddings import EmbeddingsRequest
    from fovea.api.text import ChatRequest, CompletionRequest
    from fovea_responses.wire import ResponsesRequest
    from services.relevance_judge.routes.rerank import RerankIn, ScoreIn
    from shared.lm.lora_config import list_settings
    from tests.peer_fields import PEERS, find_fate

    models = (ChatRequest, CompletionRequest, ResponsesRequest, EmbeddingsRequest, RerankIn, ScoreIn)
    lines = [
        "# Compatibility",
        "",
        "This page lists the fields of OpenAI's requests (client 3.57) and of vLLM's (0.33, and its older `guided_*`).",
        "",
        "* **served**: the field does what it says.",
        "* **accepted**: the field changes nothing in an answer.",
        "* **refused**: the answer is a 400 that names the field, unless its value asks for nothing (null …).",
        "* **unknown**: the answer has a sentence about it in `warnings`, a stream in its last chunks. Fields that",
        "  this page does not list are unknown, too. With `strict: true`, chats, completions and responses refuse.",
    ]
    for (route, peers), model in zip(PEERS.items(), models, strict=True):
        owners = {peer: set(names.split()) for peer, names in peers.items()}
        lines += ["", f"## `{route}`", "", "| field | of | here | note |", "|---|---|---|---|"]
        for name in sorted(set().union(*owners.values())):
            fate, note = find_fate(name, model)
            of = ", ".join(peer for peer, names in owners.items() if name in names)
            lines.append(f"| `{name}` | {of} | {fate} | {note.replace('|', '&#124;')} |")
    lines += ["", "## LoRA adapters", "", "Settings of peft's `adapter_config.json` (0.21).", ""]
    lines += ["| setting | here | note |", "|---|---|---|"]
    lines += [f"| `{name}` | {fate} | {note} |" for name, fate, note in list_settings()]
    yield ROOT / "docs/compatibility.md", "\n".join(lines) + "\n"


def _type_name(kind: Any) -> str:
    if typing.get_origin(kind) is typing.Literal:
        *most, last = (f"`{value}`" for value in typing.get_args(kind))
        return f"{', '.join(most)} or {last}"
    if parts := typing.get_args(kind):
        return " or ".join(_type_name(part) for part in parts)
    names = {"NoneType": "unset", "str": "text", "SecretStr": "secret text", "Path": "path", "bool": "true or false"}
    return names.get(kind.__name__, kind.__name__)


def _default(value: object) -> str:
    if value is None or value == "":
        return "unset" if value is None else "empty"
    return f"`{str(value).lower() if isinstance(value, bool) else value}`"


def claims() -> Iterator[tuple[pathlib.Path, str]]:
    """The measured parts of sparsity claims, from the benches' results: images hold services, not benches."""
    for room, suite in CLAIMS.items():
        if (results := ROOT / "loadtests/bench/results" / f"{suite}.json").exists():
            facts = json.loads(results.read_text("utf8"))["claims"]
            yield ROOT / room / "claims.json", json.dumps(facts, indent=1, sort_keys=True) + "\n"


def judge_figures() -> Iterator[tuple[pathlib.Path, str]]:
    """Figures of the default judge on text with labels, for its Card, from the bench's results."""
    facts = json.loads((ROOT / "loadtests/bench/results/judging.json").read_text("utf8"))
    rows = {row["name"]: row for row in facts["rows"]}
    measured = []
    for name, row in rows.items():
        collection, others, scorer = name.rsplit(", ", 2)
        if scorer == "similarity":
            lead = rows[f"{collection}, {others}, lead of similarity"]
            note = f"95 % interval {row['low']:.3f} to {row['high']:.3f}. Lead over {facts['baseline']} alone "
            note += f"{lead['median']:+.3f} ({lead['low']:+.3f} to {lead['high']:+.3f})."
            data = f"{collection}, {row['note']}, {others} other documents"
            own = f"pair_order_{collection}_{others}".lower().replace(" ", "_")
            measured.append({"name": own, "ours": round(row["median"], 3), "data": data, "note": note})
    yield ROOT / "services/relevance_judge/judges/measured.json", json.dumps(measured, indent=1) + "\n"


def known_plugins() -> Iterator[tuple[pathlib.Path, str]]:
    """Parts of the plug-ins in `plugins/`, so that the core can say which one is missing."""
    files = [file for file in sorted(ROOT.glob("plugins/*/pyproject.toml")) if file.parent.name != "example"]
    known = {file.parent.name: describe_plugin(file) for file in files}
    yield ROOT / "fovea/known_plugins.json", json.dumps(known, indent=1) + "\n"


def describe_plugin(project: pathlib.Path) -> dict[str, list[str]]:
    """Parts of a plug-in, by its entry points."""
    from services.llm_longctx.serving.request_extension import READERS
    from shared.registry.discovery import pick_servables, scan

    groups = tomllib.loads(project.read_text("utf8"))["project"].get("entry-points", {})
    loaded = {group: [EntryPoint(*named, group) for named in groups[group].items()] for group in groups}
    points = loaded.get("fovea.models", ())
    models = {name: kind for point in points for name, kind in pick_servables(scan(point.module)).items()}
    probes = {f"/v1/probe/{kind.route}" for kind in models.values() if hasattr(kind, "route")}
    examples = ROOT.glob("services/*/api_examples.json")
    core = {label.partition(" ")[2] for file in examples for label in json.loads(file.read_text("utf8"))}
    routes = {
        " ".join([*route.methods, route.path]) if route.path in core else route.path
        for point in loaded.get("fovea.routes", ())
        for route in point.load().routes
    }
    pages = {f"/console/{point.name}" for point in loaded.get("fovea.pages", ())}
    fields = {point.name for group in READERS for point in loaded.get(group, ())}
    return {
        "commands": sorted(groups.get("fovea.commands", ())), "fields": sorted(fields),
        "models": sorted(models), "paths": sorted(routes | pages | probes),
    }  # fmt: skip


def notices() -> Iterator[tuple[pathlib.Path, str]]:
    """Attribution of the data that the weights of each package were trained on."""
    from shared.registry.discovery import shipped_weights
    from shared.registry.weights import PACKAGES, read_manifest

    manifests = [read_manifest(file) for _, file in sorted(shipped_weights().items())]
    for licence, package in PACKAGES.items():
        lines = [
            f"{one.name}: {one.data['title']}, {one.data['terms']}, {one.data.get('doi', '')}".rstrip(", ")
            for one in manifests
            if "title" in one.data and one.licence == licence
        ]
        head = f"{package}\n\nData that these weights ({licence}) were trained on: weights: data, terms, source.\n"
        yield ROOT / "weights" / package / "NOTICE", "\n".join([head, *lines]) + "\n"


CLAIMS = {
    "services/llm_longctx/methods/core": "sparsity",
    "plugins/memory/fovea_memory/models": "sparsity_mixers",
    "services/detection/models": "sparsity_partial",
}
"""Room → the suite whose `claims` it ships."""

GENERATORS: tuple[Callable[[], Iterator[tuple[pathlib.Path, str]]], ...] = (
    pages_of_packages, judge_figures, settings_page, compatibility_page, claims, known_plugins, notices,
)  # fmt: skip


def main(write: bool) -> int:
    """Compare, or write; return the number of files that differ, figures copied by hand and outdated claims."""
    wanted = {path: text for generate in GENERATORS for path, text in generate()}
    stale = [path for path, text in wanted.items() if not path.exists() or path.read_text("utf8") != text]
    for path in stale:
        if write:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(wanted[path], "utf8")
        sys.stdout.write(f"{'wrote' if write else 'differs from its generator'}: {path.relative_to(ROOT)}\n")
    if stale and not write:
        sys.stdout.write("Run `make generate` and commit what it writes.\n")
    wrong = [*copied_by_hand(), *outdated_claims()]
    sys.stdout.write("".join(f"{one}\n" for one in wrong))
    return len(wrong) + (0 if write else len(stale))


def outdated_claims() -> Iterator[str]:
    """Each claim whose weights are not those that are served."""
    for suite in CLAIMS.values():
        reason = explain_staleness(json.loads((ROOT / f"loadtests/bench/results/{suite}.json").read_text("utf8")))
        if "weights of" in reason:
            yield f"the claims of {suite} are outdated: {reason}. Run `make bench ARGS={suite}`."


if __name__ == "__main__":
    if "--write" in sys.argv[1:]:
        main(write=True)  # pages quote the claims that this writes, so that a second pass finds what they say now
    sys.exit(1 if main("--write" in sys.argv[1:]) else 0)
