"""Sessions and documents through the gateway, the client library and the command line."""

import json

import pytest

from fovea import Client
from fovea import sessions_documents as calls
from fovea.errors import Conflict

TITANS, LANDMARK = "fovea-titans-mac", "fovea-landmark-recall"
FILL = "and the of to in on at by " * 12
TEXT = f"{FILL} dog red {FILL} owl teal {FILL}"


@pytest.fixture
def client(url):
    with Client(url) as opened:
        yield opened


def test_session_is_gone_on_with_over_the_sdk(client):
    session = client.send(calls.open_session(TITANS))
    answer = client.chat("the dog red of ? dog", model=TITANS, session_id=session.id, max_tokens=1, temperature=0)
    assert (answer.longctx.session_id, answer.longctx.state_version) == (session.id, 1)
    pieces = list(client.chat_stream("? dog", model=TITANS, session_id=session.id, max_tokens=1))
    assert pieces[-1].longctx.state_version == 2
    known = client.send(calls.session(session.id))
    assert (known.version, known.tokens) == (2, 6 + 1 + 2 + 1)
    state = client.send(calls.export_state(session.id))
    other = client.send(calls.open_session("fovea-titans-mag"))
    with pytest.raises(Conflict, match="belongs to the model"):
        client.send(calls.import_state(other.id, state))
    newest = client.send(calls.sessions(limit=1))
    assert ([s.id for s in newest.data], newest.has_more) == ([other.id], True)
    assert session.id in [s.id for s in client.send(calls.sessions(after=other.id)).data]


def test_session_from_the_command_line(fovea, tmp_path):
    session = json.loads(fovea("sessions", "open", "-m", TITANS, "--json")[1])["id"]
    code, out, _ = fovea("chat", "the dog red ? dog", "-m", TITANS, "--session", session, "-n", "1", "-t", "0")
    assert (code, len(out.split())) == (0, 1)
    assert "1" in fovea("sessions", "show", session)[1]
    (listed,) = [line for line in fovea("sessions", "list")[1].splitlines() if session in line]
    assert "ago" in listed
    assert json.loads(fovea("sessions", "list", "--limit", "1", "--json")[1])["id"] == session
    assert "\ndog\t" in fovea("sessions", "surprise", session)[1]
    assert fovea("sessions", "export", session, tmp_path / "state")[0] == 0
    twin = json.loads(fovea("sessions", "fork", session, "--json")[1])["id"]
    loaded = json.loads(fovea("sessions", "import", twin, tmp_path / "state", "--json")[1])
    assert (loaded["version"], loaded["tokens"]) == (1, 6)
    assert json.loads(fovea("sessions", "rollback", twin, "0", "--json")[1])["version"] == 2
    assert fovea("sessions", "delete", session)[0] == 0
    code, _, err = fovea("sessions", "show", session)
    assert (code, "There is no session" in err) == (4, True)


def test_document_from_the_command_line(fovea, tmp_path):
    (tmp_path / "animals.txt").write_text(TEXT)
    stored = json.loads(fovea("documents", "add", tmp_path / "animals.txt", "-m", LANDMARK, "--json")[1])
    assert stored["name"] == "animals.txt"
    code, out, err = fovea("chat", "? dog", "-m", LANDMARK, "--document", stored["id"], "-n", "1", "-t", "0")
    assert (code, len(out.split())) == (0, 1)
    assert "block " in err
    assert stored["id"] in fovea("documents", "list")[1]
    assert "dog red" in fovea("documents", "show", stored["id"])[1]
    assert fovea("documents", "delete", stored["id"])[0] == 0
    assert "No documents" in fovea("documents", "list")[2]
