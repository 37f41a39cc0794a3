"""Collections in the forms in which they are published, and routes that compare systems."""

from fovea_evaluation.imported_collection import parse_collection
from fovea_evaluation.routes.systems import RankingsIn, SignificanceIn, compare_runs, rank
from tests.fuzz.harness import Harness, ask

_LABELS = b"1 0 d1 2\n1 0 d2 0\n2 0 d1 1\n2 0 d2 3\n"
_ROWS = b'{"qid": "1", "docid": "d", "grade": 2, "signal": 0.5, "template": "t", "tokens": 3}\n'
_RUNS = b"".join(b"%d Q0 d%d 1 %d %s\n" % (q, d, q * d, tag) for q in (1, 2) for d in (1, 2) for tag in (b"a", b"b"))
_COLLECTION = b".I 1\n.T\na\n.W\na b\n.I 2\n.W\nc\n\f.I 1\n.W\nq\n.I 4\n.W\nr\n\f1 1 2\n2 2 1\n"


def _split(data: bytes) -> tuple[str, str, str]:
    first, _, rest = data.decode("utf-8", "replace").partition("\f")
    second, _, third = rest.partition("\f")
    return first, second, third


def _compare(data: bytes) -> object:
    """Answers of the routes to reference labels, a judge's and runs, as JSON without NaN."""
    reference, judge, runs = _split(data)
    calls = (
        lambda _: rank(RankingsIn(reference=reference, judge=judge, runs=runs)).model_dump_json(),
        lambda _: compare_runs(SignificanceIn(labels=judge, runs=runs, draws=100)).model_dump_json(),
    )
    return [ask(call, "") for call in calls]


HARNESSES: dict[str, Harness] = {
    "systems": Harness(_compare, (
        b"\f".join([_LABELS, _LABELS.replace(b" 2", b" 0"), _RUNS]), b"\f".join([_LABELS, _ROWS, _RUNS]),
    ), words=(b"\f", b" 1000", b"1e308", b"-1e308", b"1 0 d1 2\n", b"9 Q0 d9 1 1 c\n", b"\xe2\x80\xa8", b"0")),
    "collection": Harness(lambda data: parse_collection(*_split(data)), (_COLLECTION,), words=(
        b".I ", b".W\n", b".T\n", b"\f", b" 0 0\n", b"nan", b"\xc2\xb2",
    )),
}  # fmt: skip
