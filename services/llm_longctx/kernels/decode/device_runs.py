"""Runs of entries whose numbers lie on the device: a step reads none of them on the host."""

from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True, eq=False, slots=True)
class DeviceRuns:
    """Where the entries of R problems lie in stores of many, as tensors next to the stores.

    Attributes:
        start: [R] int64, first entry of each problem.
        n: [R] int64, its entries.
        weighted: [R] bool, whether its log-weights count.
        longest: An upper bound of `n`, known to the host: it fixes the launch, so that a captured graph stays valid.
        any_weighted: Whether some problem may be weighted; False leaves the log-weights unread.
    """

    start: Tensor
    n: Tensor
    weighted: Tensor
    longest: int
    any_weighted: bool = True
