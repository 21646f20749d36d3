"""A small real server on loopback that speaks as much of the hub's protocol as fetching a snapshot takes.

It serves `/api/models/REPO/tree/COMMIT`, `/api/models/REPO/revision/REV` and `/REPO/resolve/REV/FILE`, with ranges;
paths below `/plain/` are plain files. It can misbehave: `cut` ends a file's first answers early.
"""

from __future__ import annotations

import hashlib
import json
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

COMMIT = "0123456789abcdef0123456789abcdef01234567"


@dataclass
class Hub:
    """What the server holds: files by `owner/name/file` or, below `plain/`, by path; and what it was asked for."""

    files: dict[str, bytes] = field(default_factory=dict)
    gated: set[str] = field(default_factory=set)
    cut: dict[str, int] = field(default_factory=dict)
    """After so many bytes the connection is closed, once."""
    etags: dict[str, str] = field(default_factory=dict)
    """Hashes that are not the files'."""
    asked: list[tuple[str, str, str]] = field(default_factory=list)
    """Method, path, Range."""
    port: int = 0

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"


@contextmanager
def serving(hub: Hub) -> Iterator[Hub]:
    """The server, until the block ends."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, format: str, *args: object) -> None:
            pass

        def do_HEAD(self) -> None:
            self.answer(body=False)

        def do_GET(self) -> None:
            self.answer(body=True)

        def answer(self, body: bool) -> None:
            path = self.path.partition("?")[0]
            hub.asked.append((self.command, path, self.headers.get("Range", "")))
            if found := re.fullmatch(r"/api/models/([^/]+/[^/]+)/(tree|revision)/([^/]+)", path):
                self.listing(found[1], found[2], body)
            elif found := re.fullmatch(r"/([^/]+/[^/]+)/resolve/([^/]+)/(.+)", path):
                self.file(found[1], f"{found[1]}/{found[3]}", body)
            elif path.startswith("/plain/"):
                self.file("", path[1:].replace("%2B", "+"), body)
            else:
                self.refuse(404, "EntryNotFound", body)

        def listing(self, repo: str, kind: str, body: bool) -> None:
            names = [path.removeprefix(f"{repo}/") for path in hub.files if path.startswith(f"{repo}/")]
            if repo in hub.gated:
                self.refuse(403, "GatedRepo", body)
                return
            if not names:
                self.refuse(404, "RepoNotFound", body)
                return
            sizes = {name: len(hub.files[f"{repo}/{name}"]) for name in names}
            tree = [{"type": "file", "path": name, "size": size, "oid": "0" * 40} for name, size in sizes.items()]
            info = {"id": repo, "sha": COMMIT, "siblings": [{"rfilename": name} for name in names]}
            self.send(200, json.dumps(tree if kind == "tree" else info).encode(), {"X-Repo-Commit": COMMIT}, body)

        def file(self, repo: str, path: str, body: bool) -> None:
            if repo in hub.gated:
                self.refuse(403, "GatedRepo", body)
                return
            if path not in hub.files:
                self.refuse(404, "EntryNotFound", body)
                return
            data, start = hub.files[path], 0
            etag = hub.etags.get(path) or hashlib.sha256(data).hexdigest()
            headers = {"ETag": f'"{etag}"', "X-Repo-Commit": COMMIT}
            if found := re.fullmatch(r"bytes=(\d+)-", self.headers.get("Range", "")):
                start = int(found[1])
                headers["Content-Range"] = f"bytes {start}-{len(data) - 1}/{len(data)}"
            self.send(206 if start else 200, data[start:], headers, body, hub.cut.pop(path, None) if body else None)

        def refuse(self, code: int, word: str, body: bool) -> None:
            self.send(code, b"{}", {"X-Error-Code": word}, body)

        def send(self, code: int, data: bytes, headers: dict[str, str], body: bool, cut: int | None = None) -> None:
            self.send_response(code)
            for name, value in {
                "Content-Length": str(len(data)),
                "Content-Type": "application/json",
                **headers,
            }.items():
                self.send_header(name, value)
            self.end_headers()
            if body:
                self.wfile.write(data[:cut])
            if cut is not None:
                self.close_connection = True

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        server.daemon_threads = True
        hub.port = server.server_address[1]
        thread = threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True)
        thread.start()
        try:
            yield hub
        finally:
            server.shutdown()
            thread.join()
