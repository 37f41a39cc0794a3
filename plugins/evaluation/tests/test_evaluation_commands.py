"""Commands of `fovea judge` that the plug-in brings."""

import pytest

from fovea.cli.common_options import GatewayOptions
from fovea.errors import Malformed
from fovea_evaluation.commands import answers, systems
from tests.command import help_runner


@pytest.mark.parametrize("verb", ["rankings", "leaderboard"])
def test_help_says_what_it_said(monkeypatch, capfdbinary, snapshot, verb):
    assert help_runner(monkeypatch, capfdbinary)("judge", verb, "--help") == (0, snapshot, "")
    assert "as [id]." in help_runner(monkeypatch, capfdbinary)("judge", "support", "--help")[1]


def test_judges_that_a_table_leaves_out_are_named_and_two_passages_of_one_id_refused(monkeypatch, capsys, tmp_path):
    found = {"rows": [], "left_out": [{"judge": "one", "reason": "No grade."}]}
    monkeypatch.setattr(systems, "fetch", lambda *_, **__: found)
    systems.leaderboard(gateway=GatewayOptions(json_lines=True))
    assert capsys.readouterr() == ("", "one is not shown: No grade.\n")
    file = tmp_path / "passages.jsonl"
    file.write_text('{"id": 1, "text": "a"}\n{"id": "1", "text": "a"}\n{"id": "01", "text": "b"}\n')
    assert answers._passages(file) == {"1": "a", "01": "b"}
    file.write_text('{"id": 1, "text": "a"}\n{"id": "1", "text": "b"}\n')
    with pytest.raises(Malformed, match=r"The id 1 comes again in passages\.jsonl"):
        answers._passages(file)
