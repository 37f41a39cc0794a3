"""What all tests share: gRPC's event queue is held until the end.

gRPC ends the queue when its last user is freed. Where that happens inside a garbage collection, the end waits for the
poller's thread, which can't go on, and the whole run stands still.
"""

from __future__ import annotations

from grpc.aio import init_grpc_aio

init_grpc_aio()
