"""Collections in Cranfield's form: its traps, its relatives, and what is wrong with a file."""

import pytest

from fovea.errors import Malformed
from fovea_evaluation.collection_forms import parse_records
from fovea_evaluation.imported_collection import parse_collection

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


def test_records_become_texts_codes_become_grades_and_labels_of_empty_documents_are_kept():
    found = parse_collection(DOCUMENTS, TOPICS, "1 1 1\n3 2 4\n2 2 2\n")
    assert found.passages["1"] == "flow over a wing . the lift of a wing in a slipstream was measured ."
    assert found.passages["2"] == "heat of a plate a plate is heated at mach 4.2 ."
    assert found.topics == {"1": "what is the lift of a wing .", "2": "how hot is a plate .", "3": "who measured it ."}
    assert found.labels == {("1", "1"): 3, ("3", "2"): 1, ("2", "2"): 2}
    notes = " ".join(parse_collection(DOCUMENTS, TOPICS, "1 1 1\n3 2 -1\n").notes)
    told = ("by position", "grades: 1 → 3.", "1 relevance lines have the code -1", "1 of the documents have no text")
    assert [text for text in told if text not in notes] == []
    documents = ".I 1\n.W\nwings\n.I 995\n.T\n.W\n.I 3\n.W\nflow\n"
    found = parse_collection(documents, TOPICS, "1 1 2\n1 995 3\n3 995 1\n3 1400 2\n")
    assert found.passages == {"1": "wings", "3": "flow"}
    assert found.labels == {("1", "1"): 2, ("1", "995"): 1, ("3", "995"): 3, ("3", "1400"): 2}
    (note,) = (note for note in found.notes if "without a text" in note)
    assert note == "3 relevance lines name documents without a text (995, 1400); their labels were kept."
    assert any("no text" in note and "995" in note for note in found.notes)
    assert parse_records(".I 1\n.W\n.5 is half\n.Word\n", "x")["1"]["W"] == ".5 is half .Word"


def test_topics_numbered_without_gaps_or_used_by_relevance_lines_keep_their_ids():
    for skipped in "23":  # of ids that skip numbers the lines use those that there are
        topics = f".I 1\n.W\na\n.I {skipped}\n.W\nb\n.I 4\n.W\nc\n"
        found = parse_collection(DOCUMENTS, topics, f"01 1 1\n0{skipped} 1 1\n")
        assert list(found.labels) == [("1", "1"), (skipped, "1")]
        assert not any("position" in note for note in found.notes)
    topics = '{"_id": "1", "text": "a"}\n{"_id": "3", "text": "b"}\n{"_id": "5", "text": "c"}\n'
    found = parse_collection(BEIR, topics, "query-id\tcorpus-id\tscore\n3\t4983\t1\n")
    assert (found.labels, found.topics["3"]) == ({("3", "4983"): 1}, "b")
    topics = '{"_id": "007", "text": "a"}\n{"_id": "0a1", "text": "b"}\n{"_id": "a1", "text": "c"}\n'
    found = parse_collection(BEIR, topics, "query-id\tcorpus-id\tscore\n007\t4983\t1\n0a1\t4983\t2\na1\t4983\t3\n")
    assert found.labels == {("007", "4983"): 1, ("0a1", "4983"): 2, ("a1", "4983"): 3}


@pytest.mark.parametrize(("relevance", "grades", "labels"), [
    ("1 1 4\n3 2 -1\n", {4: 3, -1: 0}, {("1", "1"): 3, ("3", "2"): 0}),  # another reading of the codes
    ("01 2  0 0\n", None, {("001", "2"): 2}),  # no grade, as in CACM
    ("1 0 2 -2\n2 0 1 -1\n2 0 1 0\n", None, {("001", "2"): -2, ("002", "1"): 0}),  # spam, in TREC's web tracks
    ("1 0 2 3\n2 0 1 0\n", None, {("001", "2"): 3, ("002", "1"): 0}),  # TREC's lines keep their grades
    *((f"{head}\r1 0 2 1\r\n\x1a", None, {("001", "2"): 1}) for head in ("Topic iter doc rel", "qid 0 docid label")),
])  # fmt: skip
def test_relevance_lines_of_relatives_are_read(relevance, grades, labels):
    found = parse_collection(DOCUMENTS, TOPICS, relevance, grades=grades)
    assert (found.labels, "twice" in str(found.notes)) == (labels, relevance.count("2 0 1") > 1)


@pytest.mark.parametrize(("documents", "relevance", "told"), [
    ("just text", "1 1 1", "outside a record"), ("\r\n", "1 1 1", "no records"),
    (".I 1\n.W\na\n.I 1\n.W\nb\n", "1 1 1", "comes again"), (DOCUMENTS, "1 9 1", "names a document"),
    (DOCUMENTS, "7 1 1", "topic '7'"), *((DOCUMENTS, f"{qid} 1 1", "name the topic") for qid in ("²", "9" * 5000)),
    (DOCUMENTS, "1 1", "Line 1 of the relevance lines"), (DOCUMENTS, "qid docid rel\n", "no relevance line"),
    ("<DOC>\n<DOCNO>1</DOCNO></DOC>\n<DOC>\nx", "1 1 1", "A <DOC> has no <DOCNO>: 'x'"),
    ('{"id": null, "text": "a"}\n', "1 1 1", "the id ''"),
    ("1\na\n/\n2 or 3\nb\n/\n", "1 1 1", "'2 or 3'; an id is one word"),
    ('{"_id": 1, "text": "a"}\n["b"]\n', "1 1 1", "Line 2 of documents is not a JSON object"),
    ('{"_id": 1, "text": "a"}\n{\n', "1 1 1", "Line 2 of documents is not JSON"),
    (DOCUMENTS, "1 1 x", "Line 1 of the relevance lines"),
    ('{"id": "1", "body": "a"}\n', "1 0 1 1", "None of the documents has a text"),
])  # fmt: skip
def test_what_is_wrong_is_named(documents, relevance, told):
    with pytest.raises(Malformed, match=told):
        parse_collection(documents, TOPICS, relevance)


CISI = (
    ".I 1\n.T\n18 Editions of the Dewey Decimal Classifications\n.A\nComaromi, J.P.\n.W\n   The present study is"
    " about the DEWEY Decimal\nClassification.\n.X\n1\t5\t1\n.I 2\n.T\nUse Made of Technical Libraries\n.X\n2\t5\t2\n"
)
NPL = (
    "1\ncompact memories have flexible capacities  a digital data storage\nsystem with capacity up to bits\n   /\n"
    "2\nan electronic analogue computer\n   /\n"
)
LISA = (
    "Document    1\r\nTHE INDIAN COUNCIL OF LIBRARY AND INFORMATION SERVICES.\r\n \r\n"
    "   A REPORT ON THE WORK OF THE COUNCIL.\r\n"
    "********************************************\r\nDocument    2\r\nLIBRARIES.\r\n   SHELVES.\r\n"
    "********************************************\r\n"
)
TIME = (
    "*TEXT 017 01/04/63 PAGE 020\n\n THE ALLIES AFTER NASSAU  IN DECEMBER 1960, THE U.S .\n\n"
    "*TEXT 018 01/04/63 PAGE 021\n\n RUSSIA WHO'S IN CHARGE HERE\n\n*STOP\n"
)
TREC = (
    "<DOC>\n<DOCNO> FT911-3 </DOCNO>\n<HEADLINE>\nFT 14 MAY 91 / Coal</HEADLINE>\n"
    "<TEXT>\nMines &amp; men < 5, pits > 3\n</TEXT>\n</DOC>\n"
    "<DOC id='4'>\n<DOCNO>FT911-4</DOCNO>\n<TEXT>\n</TEXT>\n</DOC>\n"
)
BEIR = '{"_id": "4983", "title": "Microstructural development", "text": "Alterations of white matter"}\n'
BEIR += '{"_id": "9", "text": ""}\n'


@pytest.mark.parametrize(("files", "passages", "topics", "labels"), [
    ((CISI, ".I 1\n.W\nWhat problems exist?\n", "     1      2\t0\t0.000000\n     1    700\t0\t0.000000\n"),
     {"1": "18 Editions of the Dewey Decimal Classifications The present study is about the DEWEY Decimal "
           "Classification.", "2": "Use Made of Technical Libraries"},
     {"1": "What problems exist?"}, {("1", "2"): 2, ("1", "700"): 2}),
    ((NPL, "1\nMEASUREMENT OF DIELECTRIC CONSTANT\nOF LIQUIDS\n/\n2\nCOMPUTERS\n/\n",
      "1\n 1 9999\n   2\n   /\n2\n 2\n   /\n"),
     {"1": "compact memories have flexible capacities a digital data storage system with capacity up to bits",
      "2": "an electronic analogue computer"},
     {"1": "MEASUREMENT OF DIELECTRIC CONSTANT OF LIQUIDS", "2": "COMPUTERS"},
     {("1", "1"): 2, ("1", "9999"): 2, ("1", "2"): 2, ("2", "2"): 2}),
    ((LISA, "1\nI AM INTERESTED IN COUNCILS.\nALSO IN INDIA.  #\n2\nSHELVES. #\n",
      "Query 1 \n2 Relevant Refs: \n1 2 -1\n \nQuery 2\n1 Relevant Refs:\n2 -1\n"),
     {"1": "THE INDIAN COUNCIL OF LIBRARY AND INFORMATION SERVICES. A REPORT ON THE WORK OF THE COUNCIL.",
      "2": "LIBRARIES. SHELVES."},
     {"1": "I AM INTERESTED IN COUNCILS. ALSO IN INDIA.", "2": "SHELVES."},
     {("1", "1"): 2, ("1", "2"): 2, ("2", "2"): 2}),
    ((TIME, "*FIND    1\n\n KENNEDY AND NASSAU .\n\n*FIND    2\n\n MOSCOW .\n*STOP\n", "1  1 2 300 301\n\n2  2 1\n"),
     {"1": "THE ALLIES AFTER NASSAU IN DECEMBER 1960, THE U.S .", "2": "RUSSIA WHO'S IN CHARGE HERE"},
     {"1": "KENNEDY AND NASSAU .", "2": "MOSCOW ."},
     {("1", "1"): 2, ("1", "2"): 2, ("1", "300"): 2, ("1", "301"): 2, ("2", "2"): 2, ("2", "1"): 2}),
    ((TREC, "<top>\n<num> Number: 301\n<title> Coal mines\n<desc> Description:\nWhich mines?\n</top>\n",
      "301 0 FT911-3 1\n301 0 FT911-4 0\n"),
     {"FT911-3": "FT 14 MAY 91 / Coal Mines & men < 5, pits > 3"}, {"301": "Coal mines"},
     {("301", "FT911-3"): 1, ("301", "FT911-4"): 0}),
    ((BEIR, '{"_id": "PLAIN-2", "text": "Do statins help?"}\n', "query-id\tcorpus-id\tscore\nPLAIN-2\t4983\t1\n"),
     {"4983": "Microstructural development Alterations of white matter"}, {"PLAIN-2": "Do statins help?"},
     {("PLAIN-2", "4983"): 1}),
    (("docid\ttext\n7\tA wing\n8\t\n", '{"query_id": 3, "query": "Wings?"}\n', "3 7 1\n3 8 0\n"),  # no head: no codes
     {"7": "A wing"}, {"3": "Wings?"}, {("3", "7"): 1, ("3", "8"): 0}),
], ids=["CISI", "NPL", "LISA", "TIME", "TREC", "BEIR", "MARCO"])  # fmt: skip
def test_collections_are_read_in_the_form_in_which_they_are_published(files, passages, topics, labels):
    found = parse_collection(*(f"\ufeff{text}" for text in files))
    assert (found.passages, found.topics, found.labels) == (passages, topics, labels)
    assert all(docid in " ".join(found.notes) for docid in {docid for _, docid in labels} - set(passages))
