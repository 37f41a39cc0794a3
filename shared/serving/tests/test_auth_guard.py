"""Replicas answer to their gateway and to nobody else, over HTTP and gRPC."""

import grpc
import httpx2
import pytest

from fovea.api.replica import SECRET_HEADER
from shared.rpc import open_inference_pb2 as pb
from shared.serving.oip.grpc_health_reflection import SERVICE
from shared.settings import Settings


async def test_who_does_not_know_the_secret_can_be_no_tenant(start_replica):
    made = await start_replica(must_load=False, replica_secret="new,old")
    async with httpx2.AsyncClient(base_url=made.http) as client:
        for headers in ({}, {SECRET_HEADER: "wrong"}, {SECRET_HEADER: "new,old"}, {SECRET_HEADER: ""}):
            answer = await client.get("/v1/models", headers={"x-fovea-tenant": "alice", **headers})
            assert answer.status_code == 401
            assert "gateway only" in answer.json()["detail"]
        for secret in ("new", "old"):
            assert (await client.get("/v1/models", headers={SECRET_HEADER: secret})).status_code == 200
        assert (await client.get("/livez")).status_code == 200


@pytest.mark.parametrize(("host", "status"), [("evil.example", 403), ("evil.example:80", 403), ("localhost:1", 200)])
async def test_without_a_secret_the_name_must_be_ours(start_replica, host, status):
    made = await start_replica(must_load=False)
    async with httpx2.AsyncClient(base_url=made.http) as client:
        assert (await client.get("/v1/models", headers={"host": host})).status_code == status
        assert (await client.get("/v1/models")).status_code == 200


async def test_grpc_asks_for_the_secret_too(start_replica):
    made = await start_replica(must_load=False, replica_secret="s3cret")
    async with grpc.aio.insecure_channel(made.grpc) as channel:
        call = channel.unary_unary(f"/{SERVICE}/ServerLive")
        with pytest.raises(grpc.aio.AioRpcError) as failed:
            await call(b"")
        assert failed.value.code() is grpc.StatusCode.UNAUTHENTICATED
        answer = await call(b"", metadata=((SECRET_HEADER, "s3cret"),))
        assert pb.ServerLiveResponse.FromString(answer).live
        assert await channel.unary_unary("/grpc.health.v1.Health/Check")(b"")


def test_the_gateway_sends_the_first_of_its_secrets():
    assert Settings(replica_secret="new, old").replica_credentials == {SECRET_HEADER: "new"}
    assert Settings().replica_credentials == {}
