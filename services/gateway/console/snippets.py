"""Code snippets: how to call a model with curl, `openai`, `tritonclient` and the `fovea` client."""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from fovea.endpoints import task_path

_NUMPY = {"FP32": "float32", "FP16": "float16", "FP64": "float64", "UINT8": "uint8", "INT32": "int32", "INT64": "int64"}


@dataclass(frozen=True, slots=True)
class Snippet:
    """A titled text to copy."""

    title: str
    text: str


def build_snippets(card: Mapping[str, Any], origin: str, *, keys: bool = False) -> list[Snippet]:
    """Build ready-to-run calls of a model from its card of `/v1/models/{id}`, with an API key if callers need one."""
    writer = _SnippetWriter(card, origin, keys)
    if card["task"] in {"chat", "complete"}:
        return list(writer.chat())
    domain = writer.task() if card["task"] != "infer" else ()
    return [*domain, *writer.tensors()]


@dataclass(frozen=True, slots=True)
class _SnippetWriter:
    card: Mapping[str, Any]
    origin: str
    keys: bool

    def chat(self) -> Iterator[Snippet]:
        name = self.card["id"]
        body = json.dumps({"model": name, "messages": [{"role": "user", "content": "Say hello."}], "stream": True})
        yield self._curl("curl", "/v1/chat/completions", "-N", "-H 'Content-Type: application/json'", f"-d '{body}'")
        lines = (
            "from openai import OpenAI",
            "",
            f'client = OpenAI(base_url="{self.origin}/v1", api_key="{"fovea_…" if self.keys else "none"}")',
            "stream = client.chat.completions.create(",
            f'    model="{name}",',
            '    messages=[{"role": "user", "content": "Say hello."}],',
            "    stream=True,",
            ")",
            "for chunk in stream:",
            '    print(chunk.choices[0].delta.content or "", end="", flush=True)',
        )
        yield Snippet("openai", "\n".join(lines))
        yield Snippet("fovea", f'fovea chat "Say hello." --model {name} --url {self.origin}')

    def task(self) -> Iterator[Snippet]:
        path, picture = task_path(self.card["task"]), _find_picture_field(self.card)
        if picture is None:
            fetch = self._curl("", f"/v1/models/{self.card['id']}/example", "-o request.json").text
            post = self._curl("", path, "-H 'Content-Type: application/json'", "-d @request.json").text
            yield Snippet("curl", f"{fetch}\n{post}")
        else:
            form = (f"-F model={self.card['id']}", f"-F {picture}=@picture.jpg")
            yield self._curl("curl", path, *form)
            if "image/png" in self.card.get("media_types", ()):
                yield self._curl("curl, annotated picture", path, *form, "-H 'Accept: image/png' -o annotated.png")
        yield Snippet("fovea", self._client(picture))

    def tensors(self) -> Iterator[Snippet]:
        inputs: Sequence[Mapping[str, Any]] = self.card.get("inputs") or ()
        outputs: Sequence[Mapping[str, Any]] = self.card.get("outputs") or ()
        if not inputs or not outputs:
            return
        scheme, _, host = self.origin.partition("://")
        lines = [
            "import numpy as np",
            "import tritonclient.http as triton",
            "",
            f'client = triton.InferenceServerClient("{host}"{", ssl=True" if scheme == "https" else ""})',
            "feeds = []",
        ]
        for tensor in inputs:
            lines += [
                f"array = np.zeros({_example_shape(tensor['shape'])}, np.{_NUMPY.get(tensor['datatype'], 'float32')})",
                f'feed = triton.InferInput("{tensor["name"]}", list(array.shape), "{tensor["datatype"]}")',
                "feed.set_data_from_numpy(array)",
                "feeds.append(feed)",
            ]
        headers = ', headers={"authorization": "Bearer fovea_…"}' if self.keys else ""
        lines.append(f'answer = client.infer("{self.card["id"]}", feeds{headers})')
        lines.append(f'print(answer.as_numpy("{outputs[0]["name"]}").shape)')
        yield Snippet("tritonclient", "\n".join(lines))

    def _client(self, picture: str | None) -> str:
        task, name = self.card["task"], self.card["id"]
        photo = f'{{"model": "{name}"}}, pictures={{"{picture}": "picture.jpg"}}'
        call = f'client.run("{task}", ' + (photo if picture else f'client.example("{name}")') + ")"
        if task == "segment":
            call = f'client.segment("picture.jpg", model="{name}")'
        key = ', key="fovea_…"' if self.keys else ""
        lines = ("from fovea import Client", "", f'with Client("{self.origin}"{key}) as client:', f"    print({call})")
        return "\n".join(lines)

    def _curl(self, title: str, path: str, *arguments: str) -> Snippet:
        key = ("-H 'Authorization: Bearer fovea_…'",) if self.keys else ()
        return Snippet(title, " \\\n  ".join([f"curl {self.origin}{path}", *key, *arguments]))


def _example_shape(shape: Sequence[int]) -> str:
    """A shape to try: a batch of one, and for other free axes a side that most vision models accept."""
    first, *rest = shape
    sides = [1 if first < 0 else first, *(352 if side < 0 else side for side in rest)]
    return f"({', '.join(map(str, sides))}{',' if len(sides) == 1 else ''})"


def _find_picture_field(card: Mapping[str, Any]) -> str | None:
    schema: Mapping[str, Any] = card.get("schema") or {}
    for name, part in schema.get("properties", {}).items():
        kinds = [part, *part.get("anyOf", ())]
        if any(str(kind.get("contentMediaType", "")).startswith("image/") for kind in kinds):
            return name if {name}.issuperset(schema.get("required", ())) else None  # one that needs more has an example
    return None
