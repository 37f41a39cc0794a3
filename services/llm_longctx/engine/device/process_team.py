"""Process team: the processes that hold one decoder together, and the leader's messages to them.

Sums go through NCCL between GPUs and through gloo between processors; messages are pickled objects, through gloo. Knows
torch.distributed; knows nothing about what is sent.
"""

from datetime import timedelta
from typing import Any

import torch
from torch import distributed

from shared.lm.tensor_parallel import Team

_SUM_TIMEOUT = timedelta(minutes=10)
_MESSAGE_TIMEOUT = timedelta(days=365)
"""Nobody asks anything for days, perhaps; where the leader ends, its connections do."""


class TeamChannel:
    """Messages from rank 0 to all others."""

    def __init__(self, group: Any) -> None:
        self._group = group

    def send(self, message: Any) -> None:
        """Send to all others; of rank 0."""
        distributed.broadcast_object_list([message], 0, group=self._group, device=torch.device("cpu"))

    def receive(self) -> Any:
        """Wait for the next message; of the others."""
        held = [None]
        distributed.broadcast_object_list(held, 0, group=self._group, device=torch.device("cpu"))
        return held[0]


def join_team(rank: int, size: int, address: str, device: str = "cpu") -> tuple[Team, TeamChannel]:
    """Wait for all processes of a team, and return it with its channel.

    Args:
        rank: Which of them this is; 0 leads.
        size: How many there are.
        address: Where the leader listens, as `tcp://127.0.0.1:29500`, or `file:///path`.
        device: Of the decoder's part in this process.
    """
    is_cuda = device.startswith("cuda")
    distributed.init_process_group(
        "nccl" if is_cuda else "gloo", init_method=address, rank=rank, world_size=size, timeout=_SUM_TIMEOUT
    )
    messages = distributed.new_group(backend="gloo", timeout=_MESSAGE_TIMEOUT)
    return Team(rank, size), TeamChannel(messages)


def leave_team() -> None:
    """Give up the connections."""
    distributed.destroy_process_group()
