"""Connections from each rank to rank 0, which break when one of the two hosts no longer answers.

When a host loses power or network, it is only silent. With TCP keep-alive the kernel of each host asks the
kernel of the other for an answer, by default every second. A kernel answers even if its process is stopped,
or busy in one long call. So a slow process never looks like a lost host, and a lost host is noticed within
seconds. `peers.py` has heartbeats of the processes themselves, for which the timeout has to be longer.
"""

import errno
import ipaddress
import json
import logging
import os
import secrets
import select
import socket
import time

import torch.distributed as dist

from pretrain.distributed import rank, world_size

log = logging.getLogger(__name__)

_KEY = "isotorus/reach"
"""Key in the store. Its value is rank 0's address, port, token and host name as JSON. An empty address means
MASTER_ADDR."""
_GONE = {errno.ETIMEDOUT, errno.EHOSTUNREACH, errno.ENETUNREACH, errno.EHOSTDOWN}
_GIVE_UP = b"!"
_LINE = 512
"""Most bytes of the line by which a rank introduces itself."""
_STRANGERS = 64
"""How many more than the ranks may be connected without an introduction; the oldest are closed."""
_CONNECT_SECONDS = 5.0
_JOIN_SECONDS = 60.0


class Reach:
    """Rank 0 listens, and all other ranks connect to it; `look` says which host is gone.

    Only `join` waits. A host without a connection, for example behind a firewall, never counts as gone.
    """

    def __init__(self, store: dist.Store, seconds: int) -> None:
        """Publish rank 0's address. A host is gone after `seconds` without an answer from its kernel."""
        self._store, self._seconds = store, seconds
        self._peers: dict[int, tuple[socket.socket, str, str]] = {}
        """By file descriptor: connection, rank and host. Rank and host are "" until they are known."""
        self._poll = select.poll()
        self._joined = False
        self._began = time.monotonic()
        self.gone: set[str] = set()
        """Names of the hosts that no longer answer."""
        if rank() == 0:
            self._token = secrets.token_hex(16)
            self._server = _listen()
            port = self._server.getsockname()[1]
            address = _own_address(_master())
            store.set(_KEY, json.dumps([address, port, self._token, socket.gethostname()]))

    def join(self) -> None:
        """Connect to rank 0 once it has published its address; waits for seconds if it does not answer."""
        if rank() == 0 or self._joined or not self._store.check([_KEY]):
            return
        self._joined = True
        address, port, token, host = json.loads(self._store.get(_KEY))
        address = address or _master()
        try:
            connection = socket.create_connection((address, port), timeout=_CONNECT_SECONDS)
            self._add(connection, "0", host)
            connection.sendall(f"{token} {rank()} {socket.gethostname()}\n".encode())
        except OSError:  # rank 0 logs how many ranks have not connected
            return

    def look(self) -> str:
        """Return, as a sentence, which host is gone or that another rank has given up; "" if neither."""
        if rank() == 0:
            self._accept()
        for number, _ in self._poll.poll(0):
            connection, of, host = self._peers[number]
            try:
                # The line that introduces a rank may come in pieces, so it is read once it is whole.
                line = b"" if of else connection.recv(_LINE, socket.MSG_PEEK)
                if 0 < len(line) < _LINE and b"\n" not in line:
                    continue
                said = connection.recv(_LINE)
            except OSError as error:
                self._drop(number)
                if of and error.errno in _GONE:
                    self.gone.add(host)
                    silent = f"has not answered for stopping.unreachable={self._seconds} s"
                    return f"{host}, the host of rank {of}, {silent}"
                continue
            if said == _GIVE_UP and rank() != 0:
                return "another rank has given up"
            if of or not self._introduce(number, said):  # the rank has ended, or it is no rank of this run
                self._drop(number)
        return ""

    def give_up(self) -> None:
        """If this is rank 0, tell the other ranks that it gives up, so that they need not ask the store."""
        for connection, of, _ in self._peers.values():
            if of and rank() == 0:
                try:
                    connection.send(_GIVE_UP)
                except OSError:
                    continue

    def _accept(self) -> None:
        while True:
            try:
                connection, _ = self._server.accept()
            except OSError:
                break
            self._add(connection, "", "")
        strangers = [number for number, (_, of, _) in self._peers.items() if not of]
        for number in strangers[: -world_size() - _STRANGERS]:
            self._drop(number)
        if not self._joined and time.monotonic() - self._began > _JOIN_SECONDS:
            self._joined = True
            if missing := world_size() - 1 - sum(bool(of) for _, of, _ in self._peers.values()):
                log.warning(
                    "%d ranks have not connected to rank 0 at port %d, which a firewall may have closed; if "
                    "one of their hosts is lost, it is noticed only after stopping.lost seconds",
                    missing, self._server.getsockname()[1],
                )  # fmt: skip

    def _add(self, connection: socket.socket, of: str, host: str) -> None:
        _keep_alive(connection, self._seconds)
        connection.setblocking(False)
        self._peers[connection.fileno()] = connection, of, host
        self._poll.register(connection, select.POLLIN)

    def _introduce(self, number: int, said: bytes) -> bool:
        """Note rank and host from a connection's first line; return whether a rank of this run sent it."""
        words = said.split()
        if rank() != 0 or len(words) != 3 or not secrets.compare_digest(words[0], self._token.encode()):
            return False
        _, of, host = (word.decode(errors="replace") for word in words)
        self._peers[number] = self._peers[number][0], of, host
        return True

    def _drop(self, number: int) -> None:
        self._poll.unregister(number)
        self._peers.pop(number)[0].close()


def _master() -> str:
    return os.environ.get("MASTER_ADDR", "localhost")


def _keep_alive(connection: socket.socket, seconds: int) -> None:
    """Make the kernel ask the other host for answers, and end the connection after `seconds` without one."""
    every = max(1, seconds // 10)
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    # Not all systems have these options; where one is missing, the system's own time holds.
    for name, value in {
        "TCP_KEEPIDLE": every,
        "TCP_KEEPINTVL": every,
        "TCP_KEEPCNT": max(1, seconds // every - 1),
        "TCP_USER_TIMEOUT": 1000 * seconds,
    }.items():
        if hasattr(socket, name):
            connection.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)


def _listen() -> socket.socket:
    """Return a socket that listens on a free port, at all addresses of this host."""
    if socket.has_dualstack_ipv6():
        server = socket.create_server(("", 0), family=socket.AF_INET6, backlog=4096, dualstack_ipv6=True)
    else:
        server = socket.create_server(("", 0), backlog=4096)
    server.setblocking(False)
    return server


def _own_address(master: str) -> str:
    """Return the address of this host on the network of `master`; "" if only MASTER_ADDR can be used."""
    try:
        family, kind, _, _, address = socket.getaddrinfo(master, 9, type=socket.SOCK_DGRAM)[0]
        with socket.socket(family, kind) as facing:
            facing.connect(address)  # sends nothing
            own: str = facing.getsockname()[0]
    except OSError:
        return ""
    return "" if ipaddress.ip_address(own).is_loopback else own
