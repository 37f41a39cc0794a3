"""A model's page holds a call that works as it stands: a form for pictures, JSON for everything else."""

import json
import shlex

from fovea_docs.model_pages import render_page
from shared.serving.tests.toys import Echo, Eye


def called(text):
    block = text.split("```bash\n")[1].split("```")[0].replace("\\\n", "")
    return [shlex.split(line) for line in block.splitlines()]


def test_picture_is_sent_as_a_form_and_once_for_its_rendered_answer():
    plain, rendered = called(render_page("toy", Eye, Eye.card))
    assert plain == ["curl", "http://127.0.0.1:8080/v1/segment", "-F", "image=@picture.jpg", "-F", "model=toy/eye"]
    assert rendered[: len(plain)] == plain
    assert rendered[-1].startswith("out.")


def test_anything_else_is_sent_as_the_cards_example_whose_quotes_survive_the_shell():
    [words] = called(render_page("toy", Echo, Echo.card))
    assert words[:2] == ["curl", "http://127.0.0.1:8080/v1/echo"]
    assert json.loads(words[-1]) == {"model": "toy/echo", **Echo.card.example}
    kind = type("Quoted", (Echo,), {"card": Echo.card.model_copy(update={"example": {"text": "it's"}})})
    [words] = called(render_page("toy", kind, kind.card))
    assert json.loads(words[-1])["text"] == "it's"
