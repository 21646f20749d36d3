"""HTTP connections to one address, kept open from request to request; every request ends at one deadline.

    answer = Connections("https://host/v1").send("POST", "/chat/completions", body, headers, timeout_s=60)

Proxies are those of the environment (http_proxy, https_proxy, no_proxy). Redirects are answers like any other: nothing
is followed, so that no key goes where it was not sent.
"""

from __future__ import annotations

import base64
import http.client
import io
import select
import socket
import time
import urllib.parse
import urllib.request
import weakref
from dataclasses import dataclass
from email.message import Message
from typing import Any

MOST_BYTES = 16 << 20  # of an answer


@dataclass(frozen=True)
class Answer:
    """Status line, headers and body."""

    status: int
    reason: str
    headers: Message
    data: bytes


class Connections:
    """As many connections as requests are under way at once, from any thread. ValueError: no http(s) address."""

    def __init__(self, url: str) -> None:
        parts = urllib.parse.urlsplit(url)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise ValueError("give an http(s) address that ends in /v1")
        self._tls = parts.scheme == "https"
        self._host, self._port = parts.hostname, parts.port or (443 if self._tls else 80)
        self._path = parts.path.rstrip("/")
        proxy = None if urllib.request.proxy_bypass(parts.netloc) else urllib.request.getproxies().get(parts.scheme)
        self._proxy = urllib.parse.urlsplit(proxy if "//" in proxy else f"//{proxy}") if proxy else None
        self._proxy_headers = _authorization(self._proxy) if self._proxy else {}
        if self._proxy and not self._tls:  # which wants the whole address
            self._path = f"http://{parts.netloc}{self._path}"
        self._idle: list[_Open] = []
        weakref.finalize(self, _close, self._idle)

    def send(self, method: str, path: str, body: bytes | None, headers: dict[str, str], timeout_s: float) -> Answer:
        """The answer to one request. Raises OSError (TimeoutError), http.client.HTTPException, ValueError (cut)."""
        until = time.monotonic() + timeout_s
        while (connection := self._waiting()) is not None:
            try:
                return self._over(connection, method, path, body, headers, until)
            except (http.client.RemoteDisconnected, ConnectionResetError, BrokenPipeError):
                continue  # the server closed it meanwhile, as any may do with one that waits
        return self._over(self._opened(timeout_s), method, path, body, headers, until)

    def _waiting(self) -> _Open | None:
        """The connection that was used last, unless the server has closed it."""
        while True:
            try:
                connection = self._idle.pop()
            except IndexError:
                return None
            if not connection.deadline.is_readable():
                return connection
            connection.http.close()

    def _opened(self, timeout_s: float) -> _Open:
        kind = http.client.HTTPSConnection if self._tls else http.client.HTTPConnection
        if self._proxy:
            connection = kind(self._proxy.hostname or "", self._proxy.port or 80, timeout=timeout_s)
            if self._tls:
                connection.set_tunnel(self._host, self._port, self._proxy_headers)
        else:
            connection = kind(self._host, self._port, timeout=timeout_s)
        connection.connect()
        deadline = _Deadline(connection.sock)
        connection.sock = deadline  # http.client asks no more of it than it has
        return _Open(connection, deadline)

    def _over(
        self, connection: _Open, method: str, path: str, body: bytes | None,
        headers: dict[str, str], until: float,
    ) -> Answer:  # fmt: skip
        connection.deadline.until = until
        whole = False
        try:
            sent = headers if self._tls else headers | self._proxy_headers
            connection.http.request(method, self._path + path, body, sent)
            with connection.http.getresponse() as answer:
                data = bytearray()
                while piece := answer.read1(1 << 16):
                    data += piece
                    if len(data) > MOST_BYTES:
                        raise ValueError(f"an answer of more than {MOST_BYTES} bytes")
                expected = answer.headers.get("Content-Length")
                if expected is not None and len(data) < int(expected):
                    raise ValueError(f"cut after {len(data)} of {expected} bytes")
                whole = connection.http.sock is not None  # None: it ends with this answer
                return Answer(answer.status, answer.reason, answer.headers, bytes(data))
        finally:
            if whole:
                self._idle.append(connection)
            else:
                connection.http.close()


@dataclass(frozen=True)
class _Open:
    http: http.client.HTTPConnection
    deadline: _Deadline


def _close(idle: list[_Open]) -> None:
    for connection in idle:
        connection.http.close()


def _authorization(proxy: urllib.parse.SplitResult) -> dict[str, str]:
    if proxy.username is None:
        return {}
    user = f"{urllib.parse.unquote(proxy.username)}:{urllib.parse.unquote(proxy.password or '')}"
    return {"Proxy-Authorization": f"Basic {base64.b64encode(user.encode()).decode()}"}


class _Deadline:
    """A socket as http.client uses it, every wait of which ends at one deadline.

    A socket's own timeout is for each piece that arrives: a server that drips, even in its headers, would hold a
    request for ever.
    """

    def __init__(self, connected: socket.socket) -> None:
        self.until = 0.0
        self.socket = connected

    def is_readable(self) -> bool:
        """Whether something waits that nobody asked for: as a rule, that the other side has closed."""
        poll = select.poll()
        poll.register(self.socket, select.POLLIN)
        return bool(poll.poll(0))

    def left(self) -> float:
        """Seconds until the deadline; TimeoutError after it."""
        left = self.until - time.monotonic()
        if left <= 0:
            raise TimeoutError("not complete in time")
        return left

    def sendall(self, data: Any) -> None:
        self.socket.settimeout(self.left())
        self.socket.sendall(data)

    def makefile(self, mode: str) -> io.BufferedReader:
        return io.BufferedReader(_Incoming(self))

    def close(self) -> None:
        self.socket.close()


class _Incoming(io.RawIOBase):
    def __init__(self, deadline: _Deadline) -> None:
        self._deadline = deadline
        self._raw: Any = deadline.socket.makefile("rb", buffering=0)

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int | None:
        self._deadline.socket.settimeout(self._deadline.left())
        count: int | None = self._raw.readinto(buffer)
        return count

    def close(self) -> None:
        self._raw.close()
        super().close()
