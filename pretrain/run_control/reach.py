"""Connections from each rank to rank 0 by which the kernels of both hosts show that the hosts are there.

When a host loses power or network, the others hear nothing. With TCP keep-alive the kernel of each host asks
the other's every second, and that one answers even if its process is stopped, or busy in one long call. So a
slow process never looks like a lost host, and a lost host is noticed in seconds. `peers.py` has heartbeats of
the processes themselves, which need more patience.
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
"""Key of the store for rank 0's address, port, token and host name as JSON. The address is empty if it is
MASTER_ADDR."""
_GONE = {errno.ETIMEDOUT, errno.EHOSTUNREACH, errno.ENETUNREACH, errno.EHOSTDOWN}
_GIVE_UP = b"!"
_CONNECT_SECONDS = 5.0
_JOIN_SECONDS = 60.0


class Reach:
    """Rank 0 listens, and all others connect to it; `look` says which host has gone.

    Nothing waits but `join`. Without a connection, as behind a firewall, a host is never said to be gone.
    """

    def __init__(self, store: dist.Store, seconds: int) -> None:
        """Publish rank 0's address; `seconds` without an answer from its kernel make a host gone."""
        self._store, self._seconds = store, seconds
        self._peers: dict[int, tuple[socket.socket, str, str]] = {}
        """By file descriptor: connection, rank and host; both are empty until they are known."""
        self._poll = select.poll()
        self._joined = False
        self._began = time.monotonic()
        self.gone: set[str] = set()
        """Names of hosts that have gone."""
        if rank() == 0:
            self._token = secrets.token_hex(16)
            self._server = _listen()
            port = self._server.getsockname()[1]
            address = _own_address(_master())
            store.set(_KEY, json.dumps([address, port, self._token, socket.gethostname()]))

    def join(self) -> None:
        """Connect to rank 0 once it has published its address; takes seconds if it does not answer."""
        if rank() == 0 or self._joined or not self._store.check([_KEY]):
            return
        self._joined = True
        address, port, token, host = json.loads(self._store.get(_KEY))
        address = address or _master()
        try:
            connection = socket.create_connection((address, port), timeout=_CONNECT_SECONDS)
            self._add(connection, "0", host)
            connection.sendall(f"{token} {rank()} {socket.gethostname()}\n".encode())
        except OSError:  # rank 0 says that this rank is missing
            return

    def look(self) -> str:
        """Return which host has gone, or that another rank has given up, as a sentence; "" if neither."""
        if rank() == 0:
            self._accept()
        for number, _ in self._poll.poll(0):
            connection, of, host = self._peers[number]
            try:
                said = connection.recv(256)
            except OSError as error:
                self._drop(number)
                if of and error.errno in _GONE:
                    self.gone.add(host)
                    silent = f"has not answered for stopping.unreachable={self._seconds} s"
                    return f"{host}, the host of rank {of}, {silent}"
                continue
            if said == _GIVE_UP and rank() != 0:
                return "another rank has given up"
            if of or not self._introduce(number, said):  # a process that ends, or a stranger
                self._drop(number)
        return ""

    def give_up(self) -> None:
        """Tell the others, if this is rank 0, so that they need not wait for the store."""
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
        if not self._joined and time.monotonic() - self._began > _JOIN_SECONDS:
            self._joined = True
            if missing := world_size() - 1 - sum(bool(of) for _, of, _ in self._peers.values()):
                log.warning(
                    "%d ranks have not connected to rank 0 at port %d, which a firewall may close; if their "
                    "hosts are lost, this is noticed after stopping.lost",
                    missing, self._server.getsockname()[1],
                )  # fmt: skip

    def _add(self, connection: socket.socket, of: str, host: str) -> None:
        _keep_alive(connection, self._seconds)
        connection.setblocking(False)
        self._peers[connection.fileno()] = connection, of, host
        self._poll.register(connection, select.POLLIN)

    def _introduce(self, number: int, said: bytes) -> bool:
        """Note rank and host of a connection from its first line; return whether it is one of a rank."""
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
    """Make the kernel ask the other one for an answer, and end the connection after `seconds` without one."""
    every = max(1, seconds // 10)
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    # Names of Linux; elsewhere the system's own times hold.
    for name, value in {
        "TCP_KEEPIDLE": every,
        "TCP_KEEPINTVL": every,
        "TCP_KEEPCNT": max(1, seconds // every - 1),
        "TCP_USER_TIMEOUT": 1000 * seconds,
    }.items():
        if hasattr(socket, name):
            connection.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)


def _listen() -> socket.socket:
    """Return a socket at a free port of all addresses of this host."""
    if socket.has_dualstack_ipv6():
        server = socket.create_server(("", 0), family=socket.AF_INET6, backlog=4096, dualstack_ipv6=True)
    else:
        server = socket.create_server(("", 0), backlog=4096)
    server.setblocking(False)
    return server


def _own_address(master: str) -> str:
    """Return the address of this host that faces `master`; "" if that is only known by its name."""
    try:
        family, kind, _, _, address = socket.getaddrinfo(master, 9, type=socket.SOCK_DGRAM)[0]
        with socket.socket(family, kind) as facing:
            facing.connect(address)  # sends nothing
            own: str = facing.getsockname()[0]
    except OSError:
        return ""
    return "" if ipaddress.ip_address(own).is_loopback else own
