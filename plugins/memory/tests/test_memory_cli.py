"""Sessions and documents through the gateway and the command line."""

import json

TITANS, LANDMARK = "fovea-titans-mac", "fovea-landmark-recall"
FILL = "and the of to in on at by " * 12
TEXT = f"{FILL} dog red {FILL} owl teal {FILL}"


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
    (tmp_path / "marked.txt").write_text(TEXT, "utf-8-sig")
    again = fovea("documents", "add", tmp_path / "marked.txt", "-m", LANDMARK, "--json")[1]
    assert json.loads(again)["id"] == stored["id"]
    (tmp_path / "old.txt").write_text("Köln", "latin1")
    code, _, err = fovea("documents", "add", tmp_path / "old.txt", "-m", LANDMARK)
    assert (code, "old.txt can't be read as text" in err) == (3, True)
    code, out, err = fovea("chat", "? dog", "-m", LANDMARK, "--document", stored["id"], "-n", "1", "-t", "0")
    assert (code, len(out.split())) == (0, 1)
    assert "block " in err
    assert stored["id"] in fovea("documents", "list")[1]
    assert "dog red" in fovea("documents", "show", stored["id"])[1]
    assert fovea("documents", "delete", stored["id"])[0] == 0
    assert "No documents" in fovea("documents", "list")[2]
