"""tritonclient, over HTTP and gRPC, against a replica on real sockets: both must get the same from us."""

import queue
from typing import Any

import numpy as np
import pytest
import tritonclient.grpc as triton_grpc
import tritonclient.http as triton_http
from google.protobuf.json_format import MessageToDict
from tritonclient.utils import InferenceServerException

from shared.rpc.tensors import DTYPES
from shared.serving.tests.oip_mirrors import MIRRORS, limited, mirror, sample, serving


@pytest.fixture(scope="module")
def replica():
    with serving() as running:
        yield running


@pytest.fixture(scope="module")
def http(replica):
    with triton_http.InferenceServerClient(replica.http.removeprefix("http://"), concurrency=4) as client:
        yield client


@pytest.fixture(scope="module")
def grpc_client(replica):
    with triton_grpc.InferenceServerClient(replica.grpc) as client:
        yield client


@pytest.fixture(params=["http", "grpc"])
def triton(request, http, grpc_client):
    return (http, triton_http) if request.param == "http" else (grpc_client, triton_grpc)


def feed(module: Any, array: np.ndarray, datatype: str = "FP32", **how: Any) -> list[Any]:
    tensor = module.InferInput("in", list(array.shape), datatype)
    tensor.set_data_from_numpy(array, **how)
    return [tensor]


def plain(answer: Any) -> Any:
    """The same facts from either client: gRPC's 64-bit integers come as text."""
    return MessageToDict(answer, preserving_proto_field_name=True) if hasattr(answer, "DESCRIPTOR") else answer


@pytest.mark.parametrize("datatype", sorted(DTYPES))
def test_every_datatype_comes_back_as_it_was_sent(datatype, triton):
    client, module = triton
    array = sample(datatype)
    result = client.infer(f"mirror/{datatype.lower()}", feed(module, array, datatype), request_id="r-7")
    np.testing.assert_array_equal(result.as_numpy("out"), array, strict=True)
    assert result.as_numpy("size").tolist() == [3, 3]
    told = plain(result.get_response())
    assert (told["id"], told["model_name"], told["model_version"]) == ("r-7", f"mirror/{datatype.lower()}", "3")


def test_health_metadata_and_configuration(triton):
    client, _ = triton
    assert (client.is_server_live(), client.is_server_ready()) == (True, True)
    asked = (("picture",), ("picture", "3"), ("picture", "4"), ("nobody",))
    assert [client.is_model_ready(*model) for model in asked] == [True, True, False, False]
    server = plain(client.get_server_metadata())
    assert (server["name"], "binary_tensor_data" in server["extensions"]) == ("fovea mirrors", True)
    told = plain(client.get_model_metadata("picture", "3"))
    assert (told["name"], told["versions"], told["platform"]) == ("picture", ["3"], "fovea_mirror")
    (tensor,) = told["inputs"]
    assert (tensor["name"], tensor["datatype"], [int(a) for a in tensor["shape"]]) == ("in", "FP32", [-1, 3, -1, -1])
    assert [tensor["name"] for tensor in told["outputs"]] == ["out", "size"]
    told = plain(client.get_model_config("picture"))
    told = told.get("config", told)
    assert (told["max_batch_size"], told["input"][0]["data_type"]) == (64, "TYPE_FP32")
    assert [int(axis) for axis in told["input"][0]["dims"]] == [3, -1, -1], "without the batch axis"
    assert client.get_model_config("mirror/bytes") is not None


def test_statistics_count_inferences(triton):
    client, module = triton

    def counts() -> tuple[int, int, int]:
        (told,) = plain(client.get_inference_statistics("mirror/int8"))["model_stats"]
        stats = told.get("inference_stats", {})
        success, run = stats.get("success", {}), stats.get("compute_infer", {})
        return tuple(int(n) for n in (told.get("inference_count", 0), success.get("count", 0), run.get("ns", 0)))

    before = counts()
    client.infer("mirror/int8", feed(module, sample("INT8"), "INT8"))
    after = counts()
    assert (after[0] - before[0], after[1] - before[1], after[2] > before[2]) == (1, 1, True)
    assert len(plain(client.get_inference_statistics())["model_stats"]) == len(MIRRORS)


def index(client: Any) -> dict[str, str]:
    told = plain(client.get_model_repository_index())
    return {model["name"]: model.get("state", "") for model in (told["models"] if isinstance(told, dict) else told)}


def test_models_are_unloaded_and_loaded_again_without_configuration_from_callers(triton):
    client, module = triton
    assert index(client) == dict.fromkeys(MIRRORS, "READY")
    client.unload_model("mirror/uint8")
    assert (index(client)["mirror/uint8"], client.is_model_ready("mirror/uint8")) == ("UNAVAILABLE", False)
    with pytest.raises(InferenceServerException, match="unloaded"):
        client.infer("mirror/uint8", feed(module, sample("UINT8"), "UINT8"))
    client.load_model("mirror/uint8")
    assert client.is_model_ready("mirror/uint8")
    client.infer("mirror/uint8", feed(module, sample("UINT8"), "UINT8"))
    with pytest.raises(InferenceServerException, match="can't be given"):
        client.load_model("picture", config='{"backend": "python"}')
    for deed in (client.load_model, client.unload_model):
        with pytest.raises(InferenceServerException, match="no model 'nobody'"):
            deed("nobody")


REFUSED: dict[str, tuple[str, str, np.ndarray, str, str]] = {
    "unknown model": ("nobody", "FP32", sample("FP32"), "no model 'nobody' here; known are: mirror/bool", "404"),
    "wrong datatype": ("mirror/fp32", "FP64", sample("FP64"), "'in'.*FP64.*FP32", "400"),
    "wrong rank": ("mirror/fp32", "FP32", sample("FP32", (6,)), r"'in'.*\[6\].*\[-1, -1\]", "400"),
    "wrong axis": ("picture", "FP32", sample("FP32", (1, 4, 2, 2)), r"'in'.*\[1, 4, 2, 2\].*\[-1, 3, -1, -1\]", "400"),
    "empty batch": ("mirror/fp32", "FP32", sample("FP32", (0, 3)), r"'in'.*\[0, 3\]", "400"),
    "over the batch limit": ("mirror/fp32", "FP32", sample("FP32", (65, 1)), "at most 64", "413"),
    "model that fails": ("buggy", "FP32", sample("FP32"), "buggy failed on this request", "500"),
}
GRPC_STATUS = {"404": "NOT_FOUND", "400": "INVALID_ARGUMENT", "413": "INVALID_ARGUMENT", "500": "INTERNAL"}


@pytest.mark.parametrize(("model", "datatype", "array", "told", "status"), REFUSED.values(), ids=REFUSED.keys())
def test_what_is_wrong_is_said_in_one_sentence(model, datatype, array, told, status, triton):
    client, module = triton
    with pytest.raises(InferenceServerException, match=told) as caught:
        client.infer(model, feed(module, array, datatype))
    assert "secret" not in caught.value.message()
    assert caught.value.status() in {status, f"StatusCode.{GRPC_STATUS[status]}"}


def test_unknown_versions_inputs_and_outputs_are_refused(triton):
    client, module = triton
    good = feed(module, sample("FP32"))
    other, shared = module.InferInput("out", [2, 3], "FP32"), module.InferInput("in", [2, 3], "FP32")
    other.set_data_from_numpy(sample("FP32"))
    shared.set_shared_memory("region", 24)
    for told, tensors, how in (
        ("version 3, not '9'", good, {"model_version": "9"}),
        ("no output 'heat'", good, {"outputs": [module.InferRequestedOutput("heat")]}),
        ("classification", good, {"outputs": [module.InferRequestedOutput("out", class_count=3)]}),
        ("Sequences", good, {"sequence_id": 7, "sequence_start": True}),
        (r"no input 'out'|input 'in' is missing", [other], {}),
        ("shared memory", [shared], {}),
    ):
        with pytest.raises(InferenceServerException, match=told):
            client.infer("mirror/fp32", tensors, **how)


def test_extensions_that_are_not_offered_answer_with_a_sentence(triton):
    client, _ = triton
    asks = (
        client.get_system_shared_memory_status, client.get_cuda_shared_memory_status, client.get_trace_settings,
        client.get_log_settings, lambda: client.get_trace_settings("picture"),
        lambda: client.register_system_shared_memory("a", "b", 1),
        lambda: client.update_log_settings({"log_info": True}),
    )  # fmt: skip
    for ask in asks:
        with pytest.raises(InferenceServerException, match="not offered"):
            ask()


def test_nan_passes_as_bytes_unless_the_settings_refuse_it_and_is_refused_as_json(triton, replica, monkeypatch):
    client, module = triton
    host = replica.host
    allowing, refusing = host.settings, host.settings.model_copy(update={"refuse_non_finite": True})
    for array, datatype in ((np.full((1, 1), np.nan, np.float32), "FP32"), (np.full((1, 1), np.inf, "f2"), "FP16")):
        model, tensors = f"mirror/{datatype.lower()}", feed(module, array, datatype)
        np.testing.assert_array_equal(client.infer(model, tensors).as_numpy("out"), array)
        monkeypatch.setattr(host, "settings", refusing)
        with pytest.raises(InferenceServerException, match=r"'in'.*NaN"):
            client.infer(model, tensors)
        monkeypatch.setattr(host, "settings", allowing)
    assert np.isnan(client.infer("holes", feed(module, sample("FP32"))).as_numpy("out")).all()
    if module is triton_http:
        wanted = [module.InferRequestedOutput("out", binary_data=False)]
        with pytest.raises(InferenceServerException, match=r"'out' holds NaN.*binary data") as caught:
            client.infer("holes", feed(module, sample("FP32")), outputs=wanted)
        assert caught.value.status() == "400"


def test_the_callers_timeout_is_a_deadline(triton):
    client, module = triton
    with pytest.raises(InferenceServerException, match="deadline"):
        client.infer("slow", feed(module, sample("FP32")), timeout=50_000)


def test_a_stream_marks_final_answers_when_asked(replica):
    done: queue.Queue[tuple[Any, Any]] = queue.Queue()
    with triton_grpc.InferenceServerClient(replica.grpc) as client:
        client.start_stream(lambda result, error: done.put((result, error)))
        client.async_stream_infer("mirror/fp32", feed(triton_grpc, sample("FP32")), enable_empty_final_response=True)
        result, error = done.get(timeout=10)
        client.stop_stream()
    assert error is None
    assert result.get_response().parameters["triton_final_response"].bool_param


def test_bodies_are_compressed_as_the_client_offers_and_within_the_limit(http, grpc_client):
    array, large = np.zeros((8, 1000), np.float32), np.zeros((1, 300_000), np.float32)
    for sent, answered in ((None, "gzip"), ("gzip", "deflate"), ("deflate", None)):
        codings = {"request_compression_algorithm": sent, "response_compression_algorithm": answered}
        result = http.infer("mirror/fp32", feed(triton_http, array), **codings)
        np.testing.assert_array_equal(result.as_numpy("out"), array)
    for algorithm in (None, "gzip"):
        with pytest.raises(InferenceServerException) as caught:
            http.infer("mirror/fp32", feed(triton_http, large), request_compression_algorithm=algorithm)
        assert caught.value.status() == "413"  # the sentence may be lost when we hang up on who is still sending
        with pytest.raises(InferenceServerException, match="max") as caught:
            grpc_client.infer("mirror/fp32", feed(triton_grpc, large), compression_algorithm=algorithm)
        assert caught.value.status() == "StatusCode.RESOURCE_EXHAUSTED"


def test_an_answer_may_be_larger_than_a_request_may_be():
    wide = mirror("wide", deed=lambda array: np.tile(array, (1, 8)))
    with serving({"wide": wide}, limited()) as running:
        array = np.zeros((1, 100_000), np.float32)
        for module, address in ((triton_http, running.http.removeprefix("http://")), (triton_grpc, running.grpc)):
            with module.InferenceServerClient(address) as client:
                assert client.infer("wide", feed(module, array)).as_numpy("out").shape == (1, 800_000)


def test_a_model_that_fails_to_load_says_so_without_secrets():
    with serving({"broken": mirror("broken"), "mirror/fp32": MIRRORS["mirror/fp32"]}) as running:
        http = triton_http.InferenceServerClient(running.http.removeprefix("http://"))
        client = triton_grpc.InferenceServerClient(running.grpc)
        assert index(http) == index(client) == {"broken": "UNAVAILABLE", "mirror/fp32": "READY"}
        assert (http.is_server_ready(), client.is_server_ready()) == (False, False)
        for each in (http, client):
            with each, pytest.raises(InferenceServerException, match="did not load") as caught:
                each.load_model("broken")
            assert "secret" not in caught.value.message()
