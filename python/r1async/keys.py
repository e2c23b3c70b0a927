"""Who may connect over TCP: a CURVE key pair for each role, made by `r1async keys`.

A folder of keys holds ROLE.key (public) and ROLE.key_secret of every role. A socket lets in the public keys of the
roles that have business there and nobody else; all that passes is encrypted. Sockets of this machine (ipc://) need
no keys: only their owner may enter their folder.
"""

from __future__ import annotations

import logging
import os
import stat
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Literal, Self

import zmq
from zmq.auth.certs import create_certificates, load_certificate
from zmq.auth.thread import ThreadAuthenticator

from r1async.config import Config, ConfigError

log = logging.getLogger(__name__)

SocketName = Literal["rollouts", "batches", "events", "weights", "relay"]
Role = Literal["buffer", "learner", "generator", "scorer", "evaluator", "launcher", "relay"]

ROLES: tuple[Role, ...] = ("buffer", "learner", "generator", "scorer", "evaluator", "launcher", "relay")
OWNER: dict[SocketName, Role] = {
    "rollouts": "buffer",
    "batches": "buffer",
    "events": "buffer",
    "weights": "learner",
    "relay": "relay",
}
"""Whose key each socket has."""
ADMITTED: dict[SocketName, tuple[Role, ...]] = {
    "rollouts": ("generator", "scorer", "evaluator"),
    "batches": ("learner",),
    "events": ("launcher", "evaluator"),
    "weights": ("generator", "evaluator", "relay"),
    "relay": ("generator", "relay"),
}
"""Whose keys each socket lets in."""
KEY_BYTES = 40
"""Of a key in Z85, as it is written."""
MAX_STRANGERS = 1024
"""Refused keys that are told apart; a stranger may make as many as it likes."""


@dataclass(frozen=True, slots=True)
class ServerKeys:
    """What a bound socket needs: its own pair, and the public keys that it lets in. Z85."""

    public: bytes
    secret: bytes
    admitted: frozenset[bytes]


@dataclass(frozen=True, slots=True)
class ClientKeys:
    """What a connecting socket needs: its own pair, and the public key of the socket's owner. Z85."""

    public: bytes
    secret: bytes
    server: bytes

    def protect(self, socket: zmq.Socket) -> None:
        """Before `connect`: the socket shows its key, and talks to the owner of the server key only."""
        socket.curve_publickey = self.public
        socket.curve_secretkey = self.secret
        socket.curve_serverkey = self.server


def make_keys(folder: Path) -> None:
    """Makes a key pair for each role; secret files can be read by their owner alone.

    Raises:
        ConfigError: the folder holds keys already, which running processes may use.
    """
    if found := sorted([*folder.glob("*.key"), *folder.glob("*.key_secret")]):
        raise ConfigError(f"keys: {found[0]} is there already; name another folder, or remove its keys first")
    before = os.umask(0o077)  # not even for a moment may others read a secret
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for role in ROLES:
            create_certificates(folder, role)
    finally:
        os.umask(before)


def where_to_copy(folder: Path) -> list[str]:
    """Which files each role needs, as lines for people."""
    lines = [
        f"keys are in {folder}; *.key is public, *.key_secret is its owner's alone",
        f"set security.keys={folder} (or where the copy lies) and endpoints.*=tcp://HOST:PORT in every role's config",
        "`r1async run` needs the whole folder; of roles on other machines each needs these files:",
    ]
    for role in ROLES:
        opens: list[SocketName] = [name for name, owner in OWNER.items() if owner == role]
        public = {each for name in opens for each in ADMITTED[name]}
        public |= {OWNER[name] for name, admitted in ADMITTED.items() if role in admitted}
        lines.append(f"  {role:<10} {role}.key_secret {' '.join(f'{each}.key' for each in sorted(public - {role}))}")
    return lines


def server_keys(config: Config, name: SocketName) -> ServerKeys | None:
    """Keys of the socket that we bind; None: it needs none.

    Raises:
        ConfigError: a key that is missing, broken, or secret and readable by others.
    """
    if not _encrypted(config, name):
        return None
    folder = Path(config.security.keys)
    public, secret = _pair(folder, OWNER[name])
    return ServerKeys(public, secret, frozenset(_admitted(folder, ADMITTED[name])))


def client_keys(config: Config, name: SocketName, role: Role) -> ClientKeys | None:
    """Keys of `role` for the socket that it connects to; None: it needs none.

    Raises:
        ConfigError: as for `server_keys`.
    """
    if not _encrypted(config, name):
        return None
    folder = Path(config.security.keys)
    public, secret = _pair(folder, role)
    return ClientKeys(public, secret, _public(folder / f"{OWNER[name]}.key"))


def _encrypted(config: Config, name: SocketName) -> bool:
    return bool(config.security.keys) and config.endpoint(name).startswith("tcp://")


def _admitted(folder: Path, roles: Iterable[Role]) -> Iterable[bytes]:
    """Keys of these roles; ROLE-ANYTHING.key is one more key of the role, of another machine or person."""
    for role in roles:
        paths = [*folder.glob(f"{role}.key"), *folder.glob(f"{role}-*.key")]
        if not paths and role != "relay":  # which a run need not have
            raise ConfigError(f"security.keys: {folder} holds no {role}.key; without it no {role} is let in")
        yield from map(_public, paths)


def _public(path: Path) -> bytes:
    return _load(path)[0]


def _pair(folder: Path, role: Role) -> tuple[bytes, bytes]:
    path = folder / f"{role}.key_secret"
    public, secret = _load(path)
    if secret is None or len(secret) != KEY_BYTES:
        raise ConfigError(f"security.keys: {path} holds no secret key")
    if stat.S_IMODE(path.stat().st_mode) & 0o077:
        raise ConfigError(f"security.keys: {path} can be read by others; run `chmod 600 {path}`")
    return public, secret


def _load(path: Path) -> tuple[bytes, bytes | None]:
    try:
        public, secret = load_certificate(path)
    except (OSError, ValueError) as error:
        raise ConfigError(f"security.keys: {error}; `r1async keys --out DIR` makes keys") from error
    if len(public) != KEY_BYTES:
        raise ConfigError(f"security.keys: the key in {path} has {len(public)} characters, not {KEY_BYTES}")
    return public, secret


class Gate:
    """Lets listed keys into the guarded sockets of one context; a thread answers for it until `close`."""

    def __init__(self, context: zmq.Context) -> None:
        self._context = context
        self._authenticator: ThreadAuthenticator | None = None
        self._strangers: set[bytes] = set()
        self.refused = 0
        """Connections refused for their key."""

    def guard(self, socket: zmq.Socket, name: SocketName, keys: ServerKeys | None) -> None:
        """Before `bind`. Without keys the socket stays as open as its address."""
        if keys is None:
            return
        if self._authenticator is None:
            self._authenticator = ThreadAuthenticator(self._context)
            self._authenticator.start()
        self._authenticator.configure_curve_callback(name, _List(self, keys.admitted))
        socket.curve_server = 1
        socket.curve_publickey, socket.curve_secretkey = keys.public, keys.secret
        socket.zap_domain = name.encode()
        # Should the thread be gone, nobody gets in, instead of everybody.
        socket.setsockopt(zmq.ZAP_ENFORCE_DOMAIN, 1)

    def close(self) -> None:
        """Before the context ends. Again: nothing."""
        if self._authenticator is not None:
            self._authenticator.stop()
            self._authenticator = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()

    def _refuse(self, name: str, key: bytes) -> None:
        self.refused += 1
        if key not in self._strangers and len(self._strangers) < MAX_STRANGERS:
            self._strangers.add(key)
            log.warning("refused a connection to %s: key %s is not on its list", name, key.decode("ascii"))


class _List:
    """The keys that one socket lets in, as pyzmq asks for them."""

    def __init__(self, gate: Gate, admitted: frozenset[bytes]) -> None:
        self._gate = gate
        self._admitted = admitted

    def callback(self, domain: str, key: bytes) -> bool:
        """Whether this public key may connect to the socket."""
        if key in self._admitted:
            return True
        self._gate._refuse(domain, key)
        return False
