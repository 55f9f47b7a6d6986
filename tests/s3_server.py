"""An S3-like server for tests: moto's, in a thread. It speaks S3's own protocol, multipart uploads and all, and keeps
its objects in memory; it needs no account and no network.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import boto3
import pytest
from moto.server import ThreadedMotoServer

KEYS = {"AWS_ACCESS_KEY_ID": "test", "AWS_SECRET_ACCESS_KEY": "test"}
_numbers = itertools.count(1)


@contextmanager
def s3_server() -> Iterator[str]:
    """Serve for the length of a block; gives the URL."""
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    try:
        yield f"http://{host}:{port}"
    finally:
        server.stop()


def client_of(server: str) -> Any:
    given = {"aws_access_key_id": "test", "aws_secret_access_key": "test", "region_name": "us-east-1"}
    return boto3.client("s3", endpoint_url=server, **given)


def new_bucket(server: str, monkeypatch: pytest.MonkeyPatch) -> str:
    """Make a bucket; give its URL for the settings. Keys come from the environment, as an operator gives them."""
    for name, value in KEYS.items():
        monkeypatch.setenv(name, value)
    name = f"blobs-{next(_numbers)}"
    client_of(server).create_bucket(Bucket=name)
    return f"s3://{name}/some/prefix?region=us-east-1&endpoint={server}"
