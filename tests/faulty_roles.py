"""Roles with a fault in them, for `r1async run` in a process of its own.

``python -m tests.faulty_roles run CONFIG key=value…`` is `r1async run`, but roles named in the environment variable
FAULTS (JSON: role name to fault) run as ``python -m tests.faulty_roles FAULT COMMAND CONFIG …``: the real role with
one method replaced. FLAG names a file that a fault uses to happen once.
"""

from __future__ import annotations

from r1async.launch import lifeline

launched = lifeline.arm()

import json  # noqa: E402  (as in r1async.__main__: the lifeline first)
import os  # noqa: E402
import sys  # noqa: E402
from dataclasses import replace  # noqa: E402
from pathlib import Path  # noqa: E402


def first(text: str = "") -> bool:
    """Whether this is the first call of the run with the run's FLAG."""
    try:
        with Path(os.environ["FLAG"]).open("x") as file:
            file.write(text)
    except FileExistsError:
        return False
    return True


def drop_one() -> None:
    """The generator forgets one rollout of its first leases and says nothing."""
    from r1async.generator import generator

    take = generator.Generator._lease

    def lease(self, message):
        take(self, message)
        held = self._held.unfinished()
        if held and first():
            self._engine.abort({held[0]})
            self._held.forget([held[0]])

    generator.Generator._lease = lease


def stuck_push() -> None:
    """The first life of the generator takes no chunk of a version above 1."""
    from r1async.weights import zmq_receiver

    faulty = first()
    take = zmq_receiver.ZmqReceiver._on_chunk

    def on_chunk(self, want, message):
        if not (faulty and message.header["version"][1] > 1):
            take(self, want, message)

    zmq_receiver.ZmqReceiver._on_chunk = on_chunk


def poison() -> None:
    """The prompt leased first in the run ends every generator that gets it."""
    from r1async.generator import generator

    take = generator.Generator._lease

    def lease(self, message):
        for request in generator.read_leases(message):
            tokens = json.dumps([int(token) for token in request.prompt_ids])
            if request.pin is None and (first(tokens) or Path(os.environ["FLAG"]).read_text() == tokens):
                os._exit(9)
        take(self, message)

    generator.Generator._lease = lease


def proxied() -> None:
    """The role reaches the buffer's rollouts socket through PROXY."""
    from r1async import config

    endpoint = config.Config.endpoint
    config.Config.endpoint = lambda self, socket: (
        os.environ["PROXY"] if socket == "rollouts" else endpoint(self, socket)
    )


FAULTS = {each.__name__: each for each in (drop_one, stuck_push, poison, proxied)}


def run(arguments: list[str]) -> int:
    """`r1async run`, with the roles of FAULTS replaced."""
    from r1async.config import load_config
    from r1async.launch import local

    faults = json.loads(os.environ["FAULTS"])
    sound = local.Launcher._roles

    def roles(self):
        return [
            replace(role, program=(sys.executable, "-m", "tests.faulty_roles", faults[role.name]))
            if role.name in faults
            else role
            for role in sound(self)
        ]

    local.Launcher._roles = roles
    return local.run(load_config(arguments[0], arguments[1:]))


def main() -> int:
    if sys.argv[1] == "run":
        return run(sys.argv[2:])
    FAULTS[sys.argv.pop(1)]()
    from r1async.cli import main as role

    return role(launched=launched)


if __name__ == "__main__":
    code = main()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)
