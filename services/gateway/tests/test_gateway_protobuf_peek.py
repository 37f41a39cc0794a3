"""The model's name is read from real messages, and from no false ones."""

import contextlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fovea.errors import Malformed
from services.gateway.grpc.streams import read_text_field
from shared.rpc import open_inference_pb2 as pb


@given(
    name=st.text(max_size=50), version=st.text(max_size=5), raw=st.binary(max_size=200), number=st.integers(0, 2**40)
)
def test_the_name_is_what_the_message_says(name, version, raw, number):
    message = pb.ModelInferRequest(model_name=name, model_version=version, raw_input_contents=[raw])
    message.parameters["priority"].int64_param = number
    assert read_text_field(message.SerializeToString(), 1) == name


def test_fields_before_the_name_are_stepped_over_and_an_empty_message_has_none():
    message = pb.RepositoryModelLoadRequest(repository_name="somewhere", model_name="pranet")
    assert read_text_field(message.SerializeToString(), 2) == "pranet"
    assert read_text_field(b"\x08\x96\x01" + b"\x15abcd" + b"\x19abcdefgh" + b"\x2a\x02hi", 5) == "hi"
    assert read_text_field(b"", 1) == ""


@pytest.mark.parametrize(
    "message",
    [b"\x0a\xff", b"\x0a", b"\xff" * 20, b"\x0b", b"\x0a\x02\xff\xfe", b"\x15ab", b"\x0a\xff\xff\xff\xff\x7f"],
)
def test_what_is_no_message_is_malformed(message):
    with pytest.raises(Malformed):
        read_text_field(message, 1)


@given(st.binary(max_size=100))
def test_any_bytes_give_a_name_or_malformed(message):
    with contextlib.suppress(Malformed):
        assert isinstance(read_text_field(message, 1), str)
