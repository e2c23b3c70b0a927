"""The scorer role against a buffer that the test plays: credits, verdicts, sessions and its end."""

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from played_buffer import Router
from r1async.config import Config, ConfigError, DataConfig, EndpointsConfig, ModelConfig, RewardConfig, ScorerConfig
from r1async.rewards.scorer import main
from r1async.settings import to_yaml
from r1async.tasks import chain_mod
from r1async.tasks.meta import Question, encode_meta
from r1async.wire import Message

END_S = 20.0
GOOD = [*chain_mod.encode("<think>5,1</think><answer>5</answer>"), chain_mod.EOS]
WRONG = [*chain_mod.encode("<answer>4</answer>"), chain_mod.EOS]
CUT = chain_mod.encode("<think>5,1</think><answer>5</answer>")


class Buffer(Router):
    """Leases scoring work."""

    def __init__(self, endpoint: str) -> None:
        super().__init__(endpoint)
        self.seq = 0

    def receive(self) -> Message:
        message = super().receive()
        if message.type == "heartbeat":
            self.send({"t": "alive"})
        return message

    def score(self, completions: list[list[int]], finishes: list[str], first_lease: int = 100) -> None:
        self.seq += len(completions)
        items = [
            [first_lease + i, 7 + i, 1, i % 2, len(tokens), finish]
            for i, (tokens, finish) in enumerate(zip(completions, finishes, strict=True))
        ]
        metas = [encode_meta(Question(text="2+3=", answer=answer)) for answer in ("5", "5")]
        tokens = np.concatenate([np.array(c, dtype=np.int32) for c in completions])
        self.send({"t": "score", "seq": self.seq, "items": items, "metas": metas}, {"tokens": tokens})

    def verdicts(self, count: int) -> dict[int, list]:
        found: dict[int, list] = {}
        while len(found) < count:
            message = self.receive()
            if message.type == "verdicts":
                self.send({"t": "acks", "items": [[item[0], 1] for item in message.header["items"]], "lost": []})
                found |= {item[0]: item[1:] for item in message.header["items"]}
        return found

    def until(self, kind: str) -> Message:
        while (message := self.receive()).type != kind:
            pass
        return message


@pytest.fixture
def model(tmp_path: Path) -> Path:
    chain_mod.hf_tokenizer().save_pretrained(tmp_path / "model")
    return tmp_path / "model"


@pytest.fixture
def config(model: Path, run_root: Path, short_ipc: str) -> Config:
    return Config(
        runs_dir=str(run_root),
        name="test",
        model=ModelConfig(path=str(model)),
        reward=RewardConfig(equivalence="exact"),
        data=DataConfig(task="chain-mod", template="none"),
        scorer=ScorerConfig(queue=8),
        endpoints=EndpointsConfig(rollouts=short_ipc),
    )


@pytest.fixture
def buffer(short_ipc: str) -> Iterator[Buffer]:
    buffer = Buffer(short_ipc)
    yield buffer
    buffer.close()


@pytest.fixture
def scorer(config: Config, run_root: Path) -> Iterator[subprocess.Popen[bytes]]:
    path = run_root / "config.yaml"
    path.write_text(to_yaml(config))
    code = (
        "import sys; from r1async.settings import load; from r1async.rewards.scorer import main; "
        "main(load(sys.argv[1]), 3)"
    )
    process = subprocess.Popen([sys.executable, "-c", code, str(path)], env=os.environ)
    yield process
    process.kill()
    process.wait(END_S)


@pytest.mark.usefixtures("scorer")
def test_rollouts_become_verdicts(buffer: Buffer):
    hello = buffer.welcome().header
    assert (hello["role"], hello["name"], hello["run"]) == ("scorer", "scorer-3", "test")
    ready = buffer.expect("ready").header
    assert (ready["free"], ready["leases_seen"]) == (8, 0)
    buffer.score([GOOD, WRONG, CUT], ["stop", "stop", "length"])
    assert buffer.verdicts(3) == {
        100: [1.2, {"accuracy": 1.0, "format": 1.0}, "ok"],
        101: [0.0, {"accuracy": 0.0, "format": 0.0}, "wrong"],
        102: [1.0, {"accuracy": 1.0, "format": 0.0}, "ok"],
    }


@pytest.mark.usefixtures("scorer")
def test_credits_never_exceed_the_queue_and_never_run_out(buffer: Buffer):
    buffer.welcome()
    credits, scored, granted = 0, 0, []
    while scored < 40:
        message = buffer.receive()
        if message.type == "ready":
            granted.append(message.header["free"])
            credits = message.header["free"] - (buffer.seq - message.header["leases_seen"])
        elif message.type == "verdicts":
            scored += len(message.header["items"])
        if credits >= 4:
            buffer.score([GOOD] * 4, ["stop"] * 4, first_lease=buffer.seq)
            credits -= 4
    assert max(granted) == 8
    assert len(granted) < 1 + buffer.seq / 2, "one grant per rollout would double the messages"


@pytest.mark.usefixtures("scorer")
def test_tokens_outside_the_vocabulary_abstain_and_spare_the_others(buffer: Buffer):
    buffer.welcome()
    buffer.score([GOOD, [-5, 3], [10**6], GOOD], ["stop"] * 4)
    verdicts = buffer.verdicts(4)
    assert [verdicts[lease][0] for lease in (100, 103)] == [1.2, 1.2]
    assert verdicts[101] == [None, {}, "error"]
    assert verdicts[102][0] in (0.0, None)


@pytest.mark.usefixtures("scorer")
def test_error_replies_and_lost_leases_change_nothing(buffer: Buffer):
    buffer.welcome()
    buffer.until("ready")
    buffer.send({"t": "error", "code": "lease", "message": "no such lease", "about": "verdicts"})
    buffer.send({"t": "acks", "items": [], "lost": [1, 2]})
    buffer.send({"t": "hint", "nobody": "knows"})
    buffer.score([GOOD], ["stop"])
    assert buffer.verdicts(1)[100][0] == 1.2


@pytest.mark.usefixtures("scorer")
def test_buffer_that_forgot_us_gets_a_hello_and_our_credits_again(buffer: Buffer):
    buffer.welcome()
    buffer.until("ready")
    buffer.score([GOOD], ["stop"])
    buffer.verdicts(1)
    buffer.send({"t": "error", "code": "hello", "message": "who are you?", "about": "ready"})
    buffer.until("hello")
    buffer.send({"t": "welcome", "peer_deadline_s": 20.0})
    buffer.seq = 0
    assert buffer.until("ready").header["leases_seen"] == 0
    buffer.score([WRONG], ["stop"])
    assert buffer.verdicts(1)[100][0] == 0.0


def test_sigterm_ends_it_with_a_bye(buffer: Buffer, scorer: subprocess.Popen[bytes], run_root: Path):
    buffer.welcome()
    buffer.until("ready")
    buffer.score([GOOD], ["stop"])
    buffer.verdicts(1)
    scorer.send_signal(signal.SIGTERM)
    buffer.until("bye")
    buffer.send({"t": "gone"})
    assert scorer.wait(END_S) == 0
    assert "timeline_totals" in (run_root / "test" / "metrics" / "scorer-3.jsonl").read_text()


@pytest.mark.usefixtures("scorer")
def test_figures_count_verdicts_by_status(buffer: Buffer):
    hello = buffer.expect("hello")
    assert hello.header["role"] == "scorer"
    buffer.send({"t": "welcome", "peer_deadline_s": 4.0})  # so a heartbeat comes every second
    buffer.until("ready")
    buffer.score([GOOD, WRONG], ["stop"] * 2)
    buffer.verdicts(2)
    while (stats := buffer.until("heartbeat").header["stats"])["verdicts"] < 2:
        pass
    assert (stats["status:ok"], stats["status:wrong"], stats["queued"], stats["workers_lost"]) == (1, 1, 0, 0)


def test_model_without_a_tokenizer_is_named(config: Config, tmp_path: Path):
    from dataclasses import replace

    (tmp_path / "empty").mkdir()
    with pytest.raises(ConfigError, match=r"model\.path: .*empty"):
        main(replace(config, model=ModelConfig(path=str(tmp_path / "empty"))))


def test_reward_that_does_not_exist_is_named(config: Config):
    from dataclasses import replace

    with pytest.raises(ConfigError, match=r"reward\.weights\.nowhere:f: cannot import nowhere"):
        main(replace(config, reward=RewardConfig(weights={"nowhere:f": 1.0})))
