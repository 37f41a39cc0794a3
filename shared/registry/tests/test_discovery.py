"""One new file in a scanned room is found by name; broken rooms are reported."""

import sys
import time
from concurrent.futures import ThreadPoolExecutor
from importlib.metadata import EntryPoint
from types import SimpleNamespace

import pytest
from pydantic import create_model

import services
from fovea import plugins
from fovea.api.examples import read_examples
from fovea.errors import Cancelled, DeadlineExceeded, Fault, NotFound
from shared.registry import CallContext, Card, Paper, Servable, discovery, network, networks, servables
from shared.registry.discovery import claims, services_with_models, skipped_modules

MODEL = """
'''A model that somebody dropped into the room.'''
from pydantic import BaseModel
from shared.registry import Card, Paper, Servable, builder

class Text(BaseModel):
    text: str = "x"

@builder("toy-net")
def toy(width=3):
    return ["net", width]

class Toy(Servable[Text, Text]):
    card = Card(name="toy", task="echo", summary="s", paper=Paper(title="t", venue="v", year=2026), licence="MIT")
    In = Out = Text
    @classmethod
    def load(cls, place):
        return cls()
    def predict(self, batch, run):
        return list(batch)
"""


@pytest.fixture
def toy_room(tmp_path, monkeypatch):
    room = tmp_path / "relevance_judge" / "models"
    room.mkdir(parents=True)
    (tmp_path / "relevance_judge" / "__init__.py").write_text("'''Toy.'''")
    (room / "__init__.py").write_text("'''Toy.'''")
    (room / "toy.py").write_text(MODEL)
    for name in [n for n in sys.modules if n.startswith("services.relevance_judge")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setattr(services, "__path__", [str(tmp_path), *services.__path__])
    monkeypatch.setattr(services, "relevance_judge", None, raising=False)  # an import sets it: gone with the room
    yield room
    for name in [n for n in sys.modules if n.startswith("services.relevance_judge")]:
        del sys.modules[name]


def test_new_models_and_networks_are_found_without_editing_another_file(toy_room):
    assert list(servables("relevance-judge")) == ["toy"]
    assert network("toy-net", width=5) == ["net", 5]
    text = 'from shared.registry import builder\n@builder("wide-net")\ndef wide_net(width=2):\n    return width\n'
    (toy_room / "net.py").write_text(text)
    (toy_room / "other_net.py").write_text('raise ImportError\n# @builder("other-net")\n')
    assert "toy" in servables("relevance-judge")
    assert network("wide-net", width=5) == 5
    (toy_room / "twin.py").write_text(MODEL)
    with pytest.raises(Fault, match=r"models\.toy and services\S+\.twin both bring the model 'toy'"):
        servables("relevance-judge")


def test_name_that_two_packages_bring_is_refused_or_told_of_where_the_others_must_work(monkeypatch, caplog):
    facts = (("a", "json", "one"), ("b", "csv", "two"), ("b", "array", "one"), ("c", "json:nothing", "one"))
    points = [EntryPoint(name, of, "g")._for(SimpleNamespace(name=dist)) for name, of, dist in facts]
    monkeypatch.setattr("importlib.metadata.entry_points", lambda **_group: points)
    monkeypatch.setattr(plugins, "BROKEN", {})
    with pytest.raises(Fault, match="one and two both bring 'b' of g") as caught:
        plugins.load_all("g-of-twins")
    assert caught.value.hint == "Remove one: pip uninstall two"
    assert [*plugins.load_all("g-of-twins", working=True)] == ["a", "b"]
    assert "c left out: The plug-in one can't be loaded: json:nothing raises AttributeError" in caplog.text
    plugins.load_all("g-of-twins", "a", dict, working=True)
    assert "raises TypeError: not a dict, but a module" in plugins.BROKEN["g-of-twins a"]


def test_service_with_a_card_is_told_from_its_source(toy_room):
    assert "relevance-judge" in services_with_models()
    (toy_room / "toy.py").write_text("")
    assert "relevance-judge" not in services_with_models()
    assert "services.relevance_judge.models.toy" not in sys.modules


def test_threads_import_one_after_the_other(toy_room, monkeypatch):
    inside, most = [], []

    def load(name):
        inside.append(name)
        most.append(len(inside))
        time.sleep(0.0005)
        inside.remove(name)
        return original(name)

    original = discovery._load
    monkeypatch.setattr(discovery, "_load", load)
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(lambda _: network("toy-net"), range(4)))
    assert found == [["net", 3]] * 4
    assert max(most) == 1


def test_file_that_lacks_a_library_is_named_and_our_own_broken_import_raised(toy_room):
    (toy_room / "other.py").write_text("import a_library_nobody_has\n")
    assert skipped_modules() == {"services.relevance_judge.models.other": "a_library_nobody_has"}
    assert "toy" in servables("relevance-judge")
    (toy_room / "other.py").write_text("import shared.no_such_room\nclass Other:\n    card = 1\n")
    with pytest.raises(ModuleNotFoundError):
        servables("relevance-judge")


@pytest.mark.parametrize(("text", "told"), [
    ("raise ValueError('no file')\n#", "ValueError: no file"), ("def broken(:\n#", "SyntaxError: invalid syntax"),
    ("import plug.nothing\n#", "ModuleNotFoundError: No module named 'plug.nothing'"),
    (MODEL.replace('summary="s"', "summry=1"), "for Card summary Field required"), ("", "both bring the model 'toy'"),
    (MODEL.replace("In = Out", "Out"), "TypeError: Toy has a card but no In"),
])  # fmt: skip
def test_a_broken_module_of_a_plug_in_leaves_other_models_alone(toy_room, tmp_path, monkeypatch, text, told):
    point = EntryPoint("relevance-judge.plug", "plug", discovery.MODELS)
    monkeypatch.setattr(plugins, "entries", lambda group, _=None: (point,) if group == discovery.MODELS else ())
    monkeypatch.setattr(plugins, "BROKEN", {})
    monkeypatch.syspath_prepend(tmp_path)
    (package := tmp_path / "plug").mkdir()
    (package / "a.py").write_text(text + MODEL)
    (package / "b.py").write_text(MODEL.replace('"toy"', '"other"'))
    found = servables("relevance-judge")
    assert (found["toy"].__module__, sorted(found)) == ("services.relevance_judge.models.toy", ["other", "toy"])
    assert told in plugins.BROKEN["plug.a"]
    (package / "__init__.py").write_text("1 / 0")
    for name in [n for n in sys.modules if n.partition(".")[0] == "plug"]:
        del sys.modules[name]
    assert (list(servables("relevance-judge")), read_examples("plug")) == (["toy"], {})


def test_unknown_network_lists_the_known_and_a_card_without_types_is_refused():
    with pytest.raises(NotFound, match="known are"):
        network("no-such-net")
    assert isinstance(networks(), dict)
    facts = Card(name="x", task="echo", summary="s", paper=Paper(title="t", venue="v", year=1), licence="MIT")
    with pytest.raises(TypeError, match="no In and no Out"):
        type("Untyped", (Servable,), {"card": facts})
    picture = create_model("PlainIn", image=(bytes, ...))
    with pytest.raises(TypeError, match=r"Plain: JSON can't hold 'image' as bytes; use fovea\.api\.image\.ImageBytes"):
        type("Plain", (Servable,), {"card": facts, "In": picture, "Out": picture})


def test_run_stops_when_cancelled_or_late_and_reports_progress_inside_its_range():
    told = []
    run = CallContext(report=lambda *news: told.append(news))
    run.check()
    run.progress(1.7, "tiles")
    assert told == [(1.0, "tiles")]
    run.cancel()
    for over, error in ((run, Cancelled), (CallContext(deadline=0.0), DeadlineExceeded)):
        with pytest.raises(error):
            over.check()


SPARSE = """
'''Three ways to carry a claim, and a network with a smaller one that is not published.'''
from shared.registry import Card, Paper, builder
from shared.sparsity import SparsityClaim

def claim(model):
    return SparsityClaim(model=model, sparsity_global=0.5, counted_in="artefact", theoretical_flops_ratio=0.5)

PLAIN = claim("plain")

@builder("big")
class Big:
    sparsity = claim("method")

class Small(Big):
    card = Card(name="served", task="echo", summary="s", paper=Paper(title="t", venue="v", year=2026), licence="MIT",
                sparsity=claim("served"))
"""


def test_claims_of_cards_classes_and_modules_are_found_and_a_subclass_of_a_marked_class_is_another_thing(toy_room):
    (toy_room / "sparse.py").write_text(SPARSE)
    assert {"plain", "method", "served"} <= set(claims())
    assert networks()["big"].__name__ == "Big"
