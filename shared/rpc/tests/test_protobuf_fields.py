"""Fields of protobuf messages are found where they are, without decoding them."""

import pytest

from fovea.errors import Malformed
from shared.rpc import open_inference_pb2 as pb
from shared.rpc.protobuf_fields import MAX_FIELDS, WireField, iterate_fields


def test_each_wire_type_is_stepped_over_and_fields_of_a_real_message_are_those_that_were_set():
    message = b"\x08\x96\x01" + b"\x15abcd" + b"\x19abcdefgh" + b"\x2a\x02hi" + b"\x80\x01\x00" + b"\x32\x00"
    found = [(1, 0, 1, 3), (2, 5, 4, 8), (3, 1, 9, 17), (5, 2, 19, 21), (16, 0, 23, 24), (6, 2, 26, 26)]
    assert list(iterate_fields(message)) == [WireField(*field) for field in found]
    assert list(iterate_fields(b"")) == []
    raw = bytes(300)  # its length takes two bytes
    message = pb.ModelInferRequest(model_name="pranet", id="7", raw_input_contents=[raw, b"x"]).SerializeToString()
    fields = [(field.number, message[field.start : field.end]) for field in iterate_fields(message)]
    assert fields == [(1, b"pranet"), (3, b"7"), (7, raw), (7, b"x")]


@pytest.mark.parametrize(
    ("message", "told"),
    [
        (b"\x0a", "in the middle of a number"),
        (b"\x0a\xff", "in the middle of a number"),
        (b"\xff" * 20, "in the middle of a number"),
        (b"\x08" + b"\x80" * 10 + b"\x01", "in the middle of a number"),
        (b"\x0a\x03hi", "in the middle of a field"),
        (b"\x15abc", "in the middle of a field"),
        (b"\x19abcdefg", "in the middle of a field"),
        (b"\x0b", "unknown wire type 3"),
        (b"\x0f", "unknown wire type 7"),
        (b"\x00\x01", "a field of the number 0,"),
        (b"\x80\x80\x80\x80\x10\x01", "a field of the number 536870912,"),
    ],
)
def test_what_is_no_message_is_malformed(message, told):
    with pytest.raises(Malformed, match=told):
        list(iterate_fields(message))


def test_the_largest_number_and_a_varint_of_ten_bytes_are_read_and_fields_up_to_a_limit():
    assert list(iterate_fields(b"\xf8\xff\xff\xff\x0f\x01")) == [WireField(2**29 - 1, 0, 5, 6)]
    assert list(iterate_fields(b"\x08" + b"\x80" * 9 + b"\x01")) == [WireField(1, 0, 1, 11)]
    assert len(list(iterate_fields(b"\x08\x01" * MAX_FIELDS))) == MAX_FIELDS == 4096
    with pytest.raises(Malformed, match="more than 4,096 fields"):
        list(iterate_fields(b"\x08\x01" * (MAX_FIELDS + 1)))
