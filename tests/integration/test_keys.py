"""CURVE keys on real sockets: the right key gets in, nobody else hears a word."""

from __future__ import annotations

import shutil
import socket
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import zmq
from r1async.cli import main
from r1async.client import Connection, greeting
from r1async.config import Config, ConfigError, EndpointsConfig, SecurityConfig
from r1async.inbox import DeadlineExceeded, Inbox
from r1async.keys import ClientKeys, client_keys, make_keys, server_keys
from r1async.types import PolicyVersion
from r1async.weights.publisher import Publisher
from r1async.weights.receiver import Receiver, WeightsReady
from r1async.weights.relay import Relay
from r1async.wire import pack, unpack

from tests.integration.test_kill import Run
from tests.integration.test_server import WAIT_S, Serving
from tests.tiny_models import save_tiny

SILENCE_S = 1.0
"""How long a stranger is listened to; whom the buffer answers, it answers in milliseconds."""
SOCKETS = ("rollouts", "batches", "events", "weights")


def tcp_addresses() -> dict[str, str]:
    """An address on loopback for each socket, free a moment ago."""
    listeners = {name: socket.create_server(("127.0.0.1", 0)) for name in SOCKETS}
    addresses = {name: f"tcp://127.0.0.1:{listener.getsockname()[1]}" for name, listener in listeners.items()}
    for listener in listeners.values():
        listener.close()
    return addresses


@pytest.fixture
def config(run_root: Path) -> Config:
    make_keys(run_root / "keys")
    return Config(
        name="run",
        runs_dir=str(run_root),
        endpoints=EndpointsConfig(**tcp_addresses()),
        security=SecurityConfig(keys=str(run_root / "keys")),
    )


def stranger(keys: ClientKeys | None) -> ClientKeys:
    """The right server's key, and a pair of its own that nobody listed."""
    assert keys is not None
    public, secret = zmq.curve_keypair()
    return replace(keys, public=public, secret=secret)


def hear(config: Config, keys: ClientKeys | None, role: str, wait_s: float) -> str | None:
    """What a hello of `role` under these keys is answered; None: nothing within `wait_s` seconds."""
    context = zmq.Context()
    dealer = context.socket(zmq.DEALER)
    dealer.linger = 0
    if keys is not None:
        keys.protect(dealer)
    dealer.connect(config.endpoint("batches" if role == "learner" else "rollouts"))
    more = {"rank": 0, "world": 1, "epoch": 1, "step": 0} if role == "learner" else {}
    dealer.send(pack(greeting(role, role, config.name, **more)))
    answer = unpack(dealer.recv()).type if dealer.poll(round(wait_s * 1000)) else None
    dealer.close()
    context.term()
    return answer


def impostor(keys: ClientKeys | None) -> ClientKeys:
    """The right pair, for a server of another key."""
    assert keys is not None
    return replace(keys, server=zmq.curve_keypair()[0])


@pytest.mark.parametrize(
    "wrong",
    [
        lambda config: stranger(client_keys(config, "rollouts", "generator")),
        lambda config: None,
        lambda config: client_keys(config, "batches", "learner"),
        lambda config: impostor(client_keys(config, "rollouts", "generator")),
    ],
    ids=["a key that nobody listed", "no key", "the learner's key", "another server's key"],
)
def test_a_wrong_key_gets_no_answer_and_the_right_one_does(
    config: Config, wrong: Callable[[Config], ClientKeys | None]
) -> None:
    with Serving(config) as serving:
        assert hear(config, wrong(config), "generator", SILENCE_S) is None
        assert hear(config, client_keys(config, "rollouts", "generator"), "generator", WAIT_S) == "welcome"
        assert serving.messages() == 1


def test_each_socket_lets_in_its_own_roles(config: Config) -> None:
    with Serving(config):
        for role in ("generator", "scorer", "evaluator"):
            assert hear(config, client_keys(config, "rollouts", role), role, WAIT_S) == "welcome"
            assert hear(config, client_keys(config, "batches", role), "learner", SILENCE_S) is None
        assert hear(config, client_keys(config, "batches", "learner"), "learner", WAIT_S) == "welcome"


def test_one_more_key_of_a_role_is_let_in_by_its_file(config: Config, run_root: Path) -> None:
    more = run_root / "more"
    make_keys(more)
    shutil.copy(more / "generator.key", run_root / "keys" / "generator-west.key")
    for name in ("buffer", "learner"):
        shutil.copy(run_root / "keys" / f"{name}.key", more)
    west = replace(config, security=SecurityConfig(keys=str(more)))
    with Serving(config):
        assert hear(config, client_keys(west, "rollouts", "generator"), "generator", WAIT_S) == "welcome"
        assert hear(config, client_keys(west, "rollouts", "scorer"), "scorer", SILENCE_S) is None


def test_a_role_whose_key_is_refused_says_so(config: Config) -> None:
    inbox = Inbox()
    keys = stranger(client_keys(config, "rollouts", "scorer"))
    hello = greeting("scorer", "scorer-0", config.name)
    with (
        Serving(config),
        Connection(config.endpoint("rollouts"), hello, inbox, keys=keys, connect_deadline_s=SILENCE_S) as connection,
        pytest.raises(DeadlineExceeded, match="refuses our key"),
    ):
        connection.wait_connected(WAIT_S)


def test_a_relay_is_let_in_and_lets_in_generators(config: Config) -> None:
    config = replace(config, endpoints=replace(config.endpoints, relay=tcp_addresses()["weights"]))
    inbox = Inbox()
    with (
        Publisher(
            config.endpoint("weights"), run="run", dtype="float32", chunk_bytes=1024, deadline_s=WAIT_S,
            keys=server_keys(config, "weights"),
        ) as publisher,
        Relay(
            config.endpoint("weights"), config.endpoints.relay, Inbox(), run="run", name="relay", chunk_bytes=1024,
            window=4, threads=1, deadline_s=WAIT_S, upstream_keys=client_keys(config, "weights", "relay"),
            keys=server_keys(config, "relay"),
        ),
        Receiver(
            config.endpoint(config.weights_socket), inbox, run="run", name="g", deadline_s=WAIT_S,
            keys=client_keys(config, config.weights_socket, "generator"),
        ),
    ):  # fmt: skip
        publisher.publish(PolicyVersion(1, 0), {"w": torch.zeros(3)})
        assert isinstance(inbox.get("weights", WAIT_S), WeightsReady)


def test_weights_reach_listed_keys_only(config: Config) -> None:
    def receiver(inbox: Inbox, keys: ClientKeys | None) -> Receiver:
        return Receiver(config.endpoint("weights"), inbox, run="run", name="g", deadline_s=WAIT_S, keys=keys)

    right = client_keys(config, "weights", "generator")
    listed, unlisted, plain = Inbox(), Inbox(), Inbox()
    keys = server_keys(config, "weights")
    endpoint = config.endpoint("weights")
    with Publisher(endpoint, run="run", dtype="float32", chunk_bytes=64, deadline_s=WAIT_S, keys=keys) as publisher:
        publisher.publish(PolicyVersion(1, 0), {"a": torch.arange(40.0)})
        with receiver(unlisted, stranger(right)), receiver(plain, None), receiver(listed, right):
            assert isinstance(listed.get("weights", WAIT_S), WeightsReady)
            for inbox in (unlisted, plain):
                with pytest.raises(DeadlineExceeded):
                    inbox.get("weights", SILENCE_S)


def test_events_reach_listed_keys_only(config: Config) -> None:
    context = zmq.Context()
    right = client_keys(config, "events", "launcher")
    listeners = {}
    for name, keys in (("listed", right), ("unlisted", stranger(right)), ("plain", None)):
        listener = listeners[name] = context.socket(zmq.SUB)
        listener.linger = 0
        listener.subscribe(b"")
        if keys is not None:
            keys.protect(listener)
        listener.connect(config.endpoint("events"))
    with Serving(config):
        hear(config, client_keys(config, "rollouts", "scorer"), "scorer", WAIT_S)  # the first message starts the clock
        assert listeners["listed"].poll(round(WAIT_S * 1000))
        assert not listeners["unlisted"].poll(round(SILENCE_S * 1000))
        assert not listeners["plain"].poll(0)
    context.destroy(linger=0)


def test_sockets_of_this_machine_need_no_keys(config: Config) -> None:
    here = replace(config, endpoints=EndpointsConfig())
    assert server_keys(here, "rollouts") is None
    assert client_keys(here, "rollouts", "scorer") is None


def test_made_keys_are_their_owners_alone_and_never_overwritten(
    run_root: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = run_root / "keys"
    assert main(["keys", "--out", str(folder)]) == 0
    secrets = sorted(folder.glob("*.key_secret"))
    assert [path.name.partition(".")[0] for path in secrets] == [
        "buffer", "evaluator", "generator", "launcher", "learner", "relay", "scorer",
    ]  # fmt: skip
    assert {path.stat().st_mode & 0o777 for path in secrets} == {0o600}
    assert "scorer     scorer.key_secret buffer.key\n" in capsys.readouterr().out
    before = [path.read_bytes() for path in secrets]
    assert main(["keys", "--out", str(folder)]) == 2
    assert "is there already" in capsys.readouterr().err
    assert [path.read_bytes() for path in secrets] == before


def test_keys_that_cannot_be_used_are_named(config: Config) -> None:
    folder = Path(config.security.keys)
    secret = folder / "scorer.key_secret"
    secret.chmod(0o640)
    with pytest.raises(ConfigError, match=r"chmod 600 .*scorer\.key_secret"):
        client_keys(config, "rollouts", "scorer")
    secret.chmod(0o600)
    secret.write_text("nothing\n")
    with pytest.raises(ConfigError, match=r"No public key found in .*scorer\.key_secret"):
        client_keys(config, "rollouts", "scorer")
    (folder / "scorer.key").unlink()
    with pytest.raises(ConfigError, match=r"no scorer\.key; without it no scorer is let in"):
        server_keys(config, "rollouts")
    (folder / "buffer.key").write_text("curve\n    public-key = short\n")
    with pytest.raises(ConfigError, match="has 5 characters, not 40"):
        client_keys(config, "rollouts", "generator")


@pytest.mark.timeout(900)
def test_a_short_run_over_tcp_with_keys_trains_all_its_steps(run_root: Path, tmp_path: Path) -> None:
    make_keys(run_root / "keys")
    addresses = [f"endpoints.{name}={address}" for name, address in tcp_addresses().items()]
    run = Run(run_root, save_tiny(tmp_path / "model"), *addresses, f"security.keys={run_root / 'keys'}")
    try:
        code, printed = run.end()
        assert code == 0, printed
        run.assert_complete()
    finally:
        run.close()
