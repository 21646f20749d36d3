"""An S3 server in a process of its own, and a proxy in front of it that fails in chosen ways."""

from __future__ import annotations

import functools
import http.client
import socket
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import boto3

KEYS = {"AWS_ACCESS_KEY_ID": "test", "AWS_SECRET_ACCESS_KEY": "test", "AWS_REGION": "us-east-1"}


def free_port() -> int:
    """A port of this machine that nothing listens at."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextmanager
def s3_server() -> Iterator[str]:
    """Moto as a process; yields its address. It has an empty bucket named `bucket`."""
    port = free_port()
    command = [Path(sys.executable).with_name("moto_server"), "-H", "127.0.0.1", "-p", str(port)]
    server = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        address = f"http://127.0.0.1:{port}"
        deadline = time.monotonic() + 60
        while True:
            try:
                socket.create_connection(("127.0.0.1", port), 1).close()
                break
            except OSError:
                if time.monotonic() > deadline or server.poll() is not None:
                    raise
                time.sleep(0.02)
        client(address).create_bucket(Bucket="bucket")
        yield address
    finally:
        server.kill()
        server.wait()


@functools.cache
def client(address: str) -> Any:
    """A boto3 client of the server; to make one takes longer than many requests."""
    return boto3.client(
        "s3", endpoint_url=address, aws_access_key_id="test", aws_secret_access_key="test", region_name="us-east-1"
    )


def objects(address: str, prefix: str) -> dict[str, bytes]:
    """All objects below a prefix of the bucket, by key without the prefix."""
    s3 = client(address)
    found = {}
    for page in s3.get_paginator("list_objects_v2").paginate(Bucket="bucket", Prefix=prefix):
        for entry in page.get("Contents", []):
            found[entry["Key"][len(prefix) :]] = s3.get_object(Bucket="bucket", Key=entry["Key"])["Body"].read()
    return found


Fault = str  # error500, slow_down, conflict, wrong, cut, lost_answer, late
ANSWERS = {
    "error500": (500, b"<Error><Code>InternalError</Code></Error>"),
    "slow_down": (503, b"<Error><Code>SlowDown</Code></Error>"),
    "wrong": (400, b"<Error><Code>ExpiredToken</Code><Message>it is too old</Message></Error>"),
    "conflict": (409, b"<Error><Code>ConditionalRequestConflict</Code></Error>"),
}
LATE_S = 0.1


@contextmanager
def faulty(address: str, choose: Callable[[int, str, str], Fault | None]) -> Iterator[tuple[str, Counter[str]]]:
    """A proxy before the server; yields its address and how often each fault was given.

    `choose(number, method, path)` says which fault a request gets: `cut` closes the connection in the middle of an
    upload (or before an answer), `lost_answer` does so after the server has done what was asked.
    """
    given: Counter[str] = Counter()
    numbers = iter(range(1_000_000_000))
    lock = threading.Lock()
    host = address.removeprefix("http://")

    class Proxy(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *arguments: Any) -> None:
            pass

        def handle_one_request(self) -> None:
            try:
                super().handle_one_request()
            except OSError:
                self.close_connection = True

        def _any(self) -> None:
            with lock:
                fault = choose(next(numbers), self.command, self.path)
                given[fault or "none"] += 1
            length = int(self.headers.get("Content-Length") or 0)
            if fault == "cut":
                self.rfile.read(length // 2)
                self._hang_up()
                return
            body = self.rfile.read(length)
            if fault in ANSWERS:
                self._answer(ANSWERS[fault][0], {}, ANSWERS[fault][1])
                return
            if fault == "late":
                threading.Event().wait(LATE_S)
            server = http.client.HTTPConnection(host, timeout=60)
            server.request(self.command, self.path, body, dict(self.headers))
            answer = server.getresponse()
            data = answer.read()
            headers = {k: v for k, v in answer.getheaders() if k.lower() not in ("transfer-encoding", "connection")}
            server.close()
            if fault == "lost_answer":
                self._hang_up()
                return
            self._answer(answer.status, headers, data)

        def _answer(self, status: int, headers: dict[str, str], data: bytes) -> None:
            self.send_response(status)
            for name, value in headers.items():
                if name.lower() not in ("content-length", "date", "server"):
                    self.send_header(name, value)
            known = {k.lower(): v for k, v in headers.items()}
            length = known.get("content-length", "0") if self.command == "HEAD" else str(len(data))
            self.send_header("Content-Length", length)
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(data)

        def _hang_up(self) -> None:
            self.close_connection = True
            self.connection.shutdown(socket.SHUT_RDWR)

        do_GET = do_PUT = do_POST = do_HEAD = do_DELETE = _any

    server = ThreadingHTTPServer(("127.0.0.1", 0), Proxy)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}", given
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
