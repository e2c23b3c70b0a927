"""What every socket that is bound has in common."""

from __future__ import annotations

import logging
import sys

import zmq

from r1async._core import Receiver
from r1async.config import ConfigError

log = logging.getLogger(__name__)


def bind(socket: zmq.Socket, endpoint: str, setting: str) -> None:
    """Binds; on failure closes the socket.

    Raises:
        ConfigError: the address cannot be bound; the text names the setting.
    """
    try:
        socket.bind(endpoint)
    except zmq.ZMQError as error:
        socket.close(linger=0)
        raise ConfigError(f"{setting}: cannot bind {endpoint}: {error}; is another run using it?") from error


def router(context: zmq.Context, *, max_message_bytes: int, sndhwm: int) -> zmq.Socket:
    """A ROUTER that says when a peer is gone or full, instead of dropping silently, and lets one come back."""
    socket = context.socket(zmq.ROUTER)
    socket.linger = 0
    socket.router_mandatory = 1
    socket.router_handover = 1
    socket.maxmsgsize = max_message_bytes
    socket.sndhwm = sndhwm
    return socket


def receiver(socket: zmq.Socket) -> Receiver | None:
    """The socket for `_core.Buffer.receive`; None: this build of pyzmq hides its libzmq, so Python must receive."""
    module = sys.modules[zmq.backend.Socket.__module__].__file__
    assert module is not None
    try:
        return Receiver(module, socket.underlying)
    except OSError as error:
        log.warning("messages are received in Python, which costs more CPU: %s", error)
        return None
