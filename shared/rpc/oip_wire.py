"""Wire schemas of Open Inference v2 as pydantic models. `tensors` and `oip` check sizes, datatypes and values."""

from typing import Annotated, Any

from pydantic import ConfigDict, FailFast, Field

from fovea.api.sampling import NullIsAbsent

Parameters = dict[str, Any]
"""Open by definition; what is read is checked where it is read."""


class _Wire(NullIsAbsent):
    # Lists fail at their first bad element: a list of a million bad ones must not make a million errors.
    model_config = ConfigDict(strict=True, extra="ignore")


class Tensor(_Wire):
    """One tensor: `data` holds its values, or `parameters.binary_data_size` says how many bytes follow the JSON."""

    name: str = Field(max_length=512)
    datatype: str = Field(max_length=16, examples=["FP32"])
    shape: Annotated[list[int], FailFast()] = Field(max_length=64, examples=[[1, 3, 352, 352]])
    parameters: Parameters = Field(default_factory=dict)
    data: list[Any] | None = Field(None, description="Row-major, flat or nested as `shape`.")


class RequestedOutput(_Wire):
    """A requested output; `parameters.binary_data` asks for bytes."""

    name: str = Field(max_length=512)
    parameters: Parameters = Field(default_factory=dict)


class InferRequest(_Wire):
    """Body, or first part of the body, of an inference request."""

    id: str = Field("", max_length=512, description="Handed back with the answer.")
    parameters: Parameters = Field(
        default_factory=dict, description="`binary_data_output`: all outputs as bytes; `timeout`: in microseconds."
    )
    inputs: Annotated[list[Tensor], FailFast()] = Field(min_length=1, max_length=1024)
    outputs: Annotated[list[RequestedOutput], FailFast()] = Field(
        default_factory=list, max_length=1024, description="Empty asks for all."
    )


class InferResponse(_Wire):
    """Body, or first part of the body, of an answer."""

    model_name: str
    model_version: str = ""
    id: str = ""
    parameters: Parameters = Field(default_factory=dict)
    outputs: Annotated[list[Tensor], FailFast()]
