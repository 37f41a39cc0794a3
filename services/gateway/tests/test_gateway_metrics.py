"""Numbers of several replicas become one document that Prometheus can read."""

from prometheus_client.parser import text_string_to_metric_families

from services.gateway.routes.metrics import merge_metrics

ONE = """# HELP fovea_requests_total Requests by outcome.
# TYPE fovea_requests_total counter
fovea_requests_total{service="s",status="200"} 3.0
"""
TWO = (
    ONE.replace("3.0", "4.0")
    + "# HELP fovea_batch_size Requests.\n# TYPE fovea_batch_size histogram\n"
    + (
        'fovea_batch_size_bucket{le="1.0"} 1.0\nfovea_batch_size_bucket{le="+Inf"} 2.0\n'
        "fovea_batch_size_count 2.0\nfovea_batch_size_sum 5.0\n"
    )
)


def families(raw):
    return {family.name: family for family in text_string_to_metric_families(raw.decode())}


def test_each_sample_says_which_replica_it_came_from_and_families_are_announced_once():
    merged = merge_metrics({"a": ONE, "b": TWO, "x": "{not metrics"})
    found = families(merged)
    assert found.keys() == {"fovea_requests", "fovea_batch_size"}, "what is no metrics text is left out"
    assert {s.labels["replica"]: s.value for s in found["fovea_requests"].samples} == {"a": 3.0, "b": 4.0}
    assert merged.count(b"# TYPE fovea_requests_total counter") == 1
    assert [s.value for s in found["fovea_batch_size"].samples if s.name.endswith("_bucket")] == [1.0, 2.0]
