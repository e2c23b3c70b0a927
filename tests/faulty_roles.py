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
import signal  # noqa: E402
import sys  # noqa: E402
import time  # noqa: E402
from collections.abc import Callable  # noqa: E402
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
    from r1async.generator import generator, held

    take = generator.Generator._lease

    def lease(self, message):
        for request in held.read_leases(message):
            tokens = json.dumps([int(token) for token in request.prompt_ids])
            if request.pin is None and (first(tokens) or Path(os.environ["FLAG"]).read_text() == tokens):
                os._exit(9)
        take(self, message)

    generator.Generator._lease = lease


def _dies_after(owner: object, method: str, happened: Callable[..., bool]) -> None:
    """The process is killed at the end of the first call of the run for which `happened` is true."""
    take = getattr(owner, method)

    def call(self, *arguments, **named):
        result = take(self, *arguments, **named)
        if happened(self, *arguments) and first():
            time.sleep(0.2)  # what was sent leaves
            os.kill(os.getpid(), signal.SIGKILL)
        return result

    setattr(owner, method, call)


def dies_after_step() -> None:
    """The learner dies between its sixth optimizer step and the report of it."""
    from r1async.learner.core import LearnerCore

    _dies_after(LearnerCore, "update", lambda self: self.version == 6)


def dies_within_batch() -> None:
    """The learner dies with the gradients of some parts of a batch, of step 5 or later."""
    from r1async.learner.core import LearnerCore

    _dies_after(LearnerCore, "accumulate", lambda self, batch: batch.step >= 5 and not batch.last)


def dies_after_publish() -> None:
    """The learner dies when the weights of version 6 can be had, before the checkpoint."""
    from r1async.learner.link import Link

    _dies_after(Link, "published", lambda self, version, digest: version.number == 6)


def dies_after_checkpoint() -> None:
    """The learner dies between a whole checkpoint and the word of it."""
    from r1async.learner import learner

    _dies_after(learner, "save_checkpoint", lambda folder, core, epoch: core.version == 8)


def dies_after_commit() -> None:
    """The learner dies between its commit and the answer."""
    from r1async.learner.link import Link

    _dies_after(Link, "committed", lambda self, step: step == 8)


def swaps_tensors() -> None:
    """The generator's engine takes two tensors of one shape for each other."""
    from r1async.generator import torch_engine

    from tests.broken_engines import SwappedTensors

    torch_engine.TorchEngine = SwappedTensors


def proxied() -> None:
    """The role reaches the buffer's rollouts socket through PROXY."""
    from r1async import config

    endpoint = config.Config.endpoint
    config.Config.endpoint = lambda self, socket: (
        os.environ["PROXY"] if socket == "rollouts" else endpoint(self, socket)
    )


DEATHS = (dies_within_batch, dies_after_step, dies_after_publish, dies_after_checkpoint, dies_after_commit)
FAULTS = {each.__name__: each for each in (drop_one, stuck_push, poison, swaps_tensors, proxied, *DEATHS)}


def run(arguments: list[str]) -> int:
    """`r1async run`, with the roles of FAULTS replaced."""
    from r1async.config import load_config
    from r1async.launch import local, supervise

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
    # No role is forked from a warm process: the sound ones would have done the run before the faulty one has imported.
    supervise.Supervisor.may_fork = lambda self, role: False
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
