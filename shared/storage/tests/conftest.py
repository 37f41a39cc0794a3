"""Stores in a folder and in a real S3 server; every test gets an empty one."""

import uuid

import pytest

from shared.storage import ObjectStore
from shared.storage.tests.s3_server import run_s3_server


@pytest.fixture(scope="session")
def s3_variables():
    with run_s3_server() as variables:
        yield variables


@pytest.fixture(params=["folder", "s3"])
def store(request, tmp_path, monkeypatch):
    if request.param == "folder":
        return ObjectStore.open((tmp_path / "objects").as_uri())
    for name, value in request.getfixturevalue("s3_variables").items():
        monkeypatch.setenv(name, value)
    return ObjectStore.open(f"s3://fovea/{uuid.uuid4().hex}")
