"""A proxy in front of an HTTP server, which imitates the faults that the server may have."""

import threading
import time
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import requests

_HOP_BY_HOP = {"connection", "transfer-encoding", "content-encoding", "content-length", "server", "date"}


class Proxy:
    """Listen inside a `with` block, by default on a free port of the loopback; the fields may be set at any
    time."""

    def __init__(self, upstream: str, host: str = "127.0.0.1", port: int = 0) -> None:
        self.upstream, self._listens_at = upstream, (host, port)
        self.status: int | None = None
        """Status of all answers; if None, the server answers."""
        self.loses: str | None = None
        """The server handles requests whose path has this text, but its answers are lost."""
        self.full = False
        """Whether requests that write are answered with 507, as by a store without room."""
        self.then: Callable[[str, str], None] = lambda method, path: None
        """What is done once the server has handled a request, before its answer is passed on."""
        self.delay = 0.0
        """Seconds before a request reaches the server."""
        self.waiting = 0
        """Number of requests that are being delayed."""
        self.asked: list[str] = []
        """Method and path of every request."""

    def __enter__(self) -> "Proxy":
        self._server = ThreadingHTTPServer(self._listens_at, self._handler())
        self.address = f"http://127.0.0.1:{self._server.server_port}"
        threading.Thread(target=self._server.serve_forever, args=(0.05,)).start()
        return self

    def __exit__(self, *error: object) -> None:
        self.delay = 0.0
        self._server.shutdown()
        self._server.server_close()

    def _handler(self) -> type[BaseHTTPRequestHandler]:
        proxy = self

        class Handler(BaseHTTPRequestHandler):
            def pass_on(self) -> None:
                if self.headers.get("Expect") == "100-continue":
                    self.wfile.write(b"HTTP/1.1 100 Continue\r\n\r\n")
                body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
                proxy.asked.append(f"{self.command} {self.path}")
                proxy.waiting += 1
                time.sleep(proxy.delay)
                proxy.waiting -= 1
                status = 507 if proxy.full and self.command in ("PUT", "POST") else proxy.status
                if status:
                    self.send_response(status)
                    self.send_header("Content-Length", "0")
                    self.end_headers()
                    return
                try:
                    url = proxy.upstream + self.path
                    headers = {name: value for name, value in self.headers.items() if name != "Expect"}
                    found = requests.request(self.command, url, headers=headers, data=body)
                except requests.ConnectionError:  # there is no server, and so no answer
                    self.close_connection = True
                    return
                proxy.then(self.command, self.path)
                if proxy.loses is not None and proxy.loses in self.path:
                    self.close_connection = True
                    return
                self._answer(found)

            do_GET = do_HEAD = do_POST = do_PUT = do_PATCH = do_DELETE = pass_on

            def _answer(self, found: requests.Response) -> None:
                self.send_response(found.status_code)
                for name, value in found.headers.items():
                    if name.lower() not in _HOP_BY_HOP:
                        self.send_header(name, value)
                length = found.headers["Content-Length"] if self.command == "HEAD" else len(found.content)
                self.send_header("Content-Length", str(length))
                self.end_headers()
                if self.command != "HEAD":
                    self.wfile.write(found.content)

            def log_message(self, *message: Any) -> None:
                pass

        return Handler
