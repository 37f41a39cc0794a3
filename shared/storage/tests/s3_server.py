"""A real S3 server (moto's) in a process of its own, with one bucket."""

import json
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager

import boto3

# moto looks whether an object exists and then stores it: two that create it at once would both be told that they did.
_PROGRAM = """
import json, sys, threading
from moto.s3.responses import S3Response
from moto.server import ThreadedMotoServer
put, lock = S3Response.put_object, threading.Lock()
def put_alone(response):
    with lock:
        return put(response)
S3Response.put_object = put_alone
server = ThreadedMotoServer("127.0.0.1", 0, verbose=False)
server.start()
print(json.dumps(server.get_host_and_port()), flush=True)
sys.stdin.read()
"""


@contextmanager
def run_s3_server() -> Iterator[dict[str, str]]:
    """Run a server with the bucket `fovea`; yields the variables under which a process reaches it."""
    command = [sys.executable, "-W", "ignore", "-c", _PROGRAM]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) as server:
        assert server.stdout
        host, port = json.loads(server.stdout.readline())
        endpoint, region = f"http://{host}:{port}", "us-east-1"
        keys = {"aws_access_key_id": "test", "aws_secret_access_key": "test"}
        client = boto3.client("s3", endpoint_url=endpoint, region_name=region, **keys)
        client.create_bucket(Bucket="fovea")
        client.close()
        yield {"AWS_ENDPOINT_URL": endpoint, "AWS_REGION": region, **{name.upper(): key for name, key in keys.items()}}
        server.kill()
