"""Collections in Cranfield's form: its traps, its relatives, and what is wrong with a file."""

import pytest

from fovea.errors import Malformed
from services.relevance_judge.parsing.cranfield import parse_collection, parse_records

DOCUMENTS = """.I 1
.T
flow over a wing .
.A
a. author
.B
j. ae. 1, 1958.
.W
flow over a wing .
  the lift of a wing in a slipstream was measured .
.I 2
.T
heat of a plate
.W
a plate is heated at mach 4.2 .
.I 3
.T

.A

.W

"""
TOPICS = ".I 001\n.W\nwhat is the lift\nof a wing .\n.I 002\n.W\nhow hot is a plate .\n.I 004\n.W\nwho measured it .\n"


def test_records_become_texts_and_codes_become_grades():
    found = parse_collection(DOCUMENTS, TOPICS, "1 1 1\n3 2 4\n2 2 2\n")
    assert found.passages["1"] == "flow over a wing . the lift of a wing in a slipstream was measured ."
    assert found.passages["2"] == "heat of a plate a plate is heated at mach 4.2 ."
    assert found.topics == {"1": "what is the lift of a wing .", "2": "how hot is a plate .", "3": "who measured it ."}
    assert found.labels == {("1", "1"): 3, ("3", "2"): 1, ("2", "2"): 2}


def test_what_was_decided_is_said():
    notes = " ".join(parse_collection(DOCUMENTS, TOPICS, "1 1 1\n3 2 -1\n").notes)
    assert "by position" in notes
    assert "1 relevance lines have the code -1" in notes
    assert "1 of the documents have no text" in notes


def test_topics_numbered_without_gaps_keep_their_ids():
    topics = ".I 1\n.W\na\n.I 2\n.W\nb\n"
    found = parse_collection(DOCUMENTS, topics, "01 1 1\n")
    assert list(found.labels) == [("1", "1")]
    assert not any("position" in note for note in found.notes)


@pytest.mark.parametrize(
    ("relevance", "grades", "labels"),
    [
        ("1 1 4\n3 2 -1\n", {4: 3, -1: 0}, {("1", "1"): 3, ("3", "2"): 0}),  # another reading of the codes
        ("1 2 0 0.000000\n", None, {("1", "2"): 2}),  # no grade, as in CISI and CACM
        ("01 2  0 0\n", None, {("1", "2"): 2}),
        ("1 0 2 3\n2 0 1 0\n", None, {("1", "2"): 3, ("2", "1"): 0}),  # TREC's lines keep their grades
    ],
)
def test_relevance_lines_of_relatives_are_read(relevance, grades, labels):
    options = {} if grades is None else {"grades": grades}
    assert parse_collection(DOCUMENTS, TOPICS, relevance, **options).labels == labels


@pytest.mark.parametrize(
    ("documents", "relevance", "told"),
    [
        ("just text", "1 1 1", "outside a record"),
        ("", "1 1 1", "no records"),
        (".I 1\n.W\na\n.I 1\n.W\nb\n", "1 1 1", "comes again"),
        (DOCUMENTS, "1 9 1", "names a document"),
        (DOCUMENTS, "7 1 1", "topic '7'"),
        (DOCUMENTS, "1 1", "Line 1 of the relevance lines"),
        (DOCUMENTS, "1 1 x", "Line 1 of the relevance lines"),
    ],
)
def test_what_is_wrong_is_named(documents, relevance, told):
    with pytest.raises(Malformed, match=told):
        parse_collection(documents, TOPICS, relevance)


def test_labels_of_documents_that_are_empty_or_missing_are_kept_counted_and_told():
    documents = ".I 1\n.W\nwings\n.I 995\n.T\n.W\n.I 3\n.W\nflow\n"
    found = parse_collection(documents, TOPICS, "1 1 2\n1 995 3\n2 995 1\n2 1400 2\n")
    assert found.passages == {"1": "wings", "3": "flow"}
    assert found.labels == {("1", "1"): 2, ("1", "995"): 1, ("2", "995"): 3, ("2", "1400"): 2}
    assert [note for note in found.notes if "without a text" in note] == [
        "3 relevance lines name documents without a text (995, 1400); their labels were kept."
    ]
    assert any("no text" in note and "995" in note for note in found.notes)


def test_a_dot_inside_text_starts_no_field():
    assert parse_records(".I 1\n.W\n.5 is half\n.Word\n", "x")["1"]["W"] == ".5 is half .Word"


@pytest.mark.parametrize("qid", ["²", "9" * 5000])
def test_a_topic_that_is_a_digit_and_no_number_is_unknown(qid):
    with pytest.raises(Malformed, match="name the topic"):
        parse_collection(".I d\n.W\ntext\n", ".I 1\n.W\na\n.I 4\n.W\nb\n", f"{qid} d 1\n")
