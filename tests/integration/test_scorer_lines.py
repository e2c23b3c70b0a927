"""A real scorer with two pools, against a buffer and a judge that the test plays: the slow one delays nobody else."""

import os
import re
import subprocess
import sys
import threading
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from played_buffer import Router
from r1async.config import Config, DataConfig, EndpointsConfig, ModelConfig, RewardConfig, ScorerConfig
from r1async.config_endpoint import EndpointConfig
from r1async.config_rewards import DomainConfig, JudgeConfig
from r1async.settings import to_yaml
from r1async.tasks import chain_mod
from r1async.tasks.meta import Question, encode_meta
from r1async.wire import Message

from tests.played_chat import PlayedChat

END_S = 20.0
GOOD = [*chain_mod.encode("<think>5,1</think><answer>5</answer>"), chain_mod.EOS]


class Buffer(Router):
    def __init__(self, endpoint: str) -> None:
        super().__init__(endpoint)
        self.seen = 0
        self.granted: list[tuple[int, list]] = []

    def score(self, pool: str, leases: list[int]) -> None:
        extra = {"domain": "general"} if pool == "judge" else {}
        self.seen += len(leases)
        items = [[lease, lease, 1, 0, len(GOOD), "stop"] for lease in leases]
        header = {"t": "score", "seq": self.seen, "pool": pool, "items": items}
        metas = [encode_meta(Question(text="2+3=", answer="5", extra=extra))]
        self.send({**header, "metas": metas}, {"tokens": np.tile(np.array(GOOD, np.int32), len(leases))})

    def next(self, *kinds: str) -> Message:
        while (message := self.receive()).type not in kinds:
            if message.type == "heartbeat":
                self.send({"t": "alive"})
        return message


def test_a_pool_that_gives_no_verdicts_takes_no_room_from_another(tmp_path: Path, run_root: Path, short_ipc: str):
    chain_mod.hf_tokenizer().save_pretrained(tmp_path / "model")
    released = threading.Event()

    def answer(body: Mapping[str, Any]) -> object:
        if not released.is_set():
            return released  # waits, and is then cut off: the scorer asks again
        code = re.findall(r"the code (\w{8}), then", body["messages"][0]["content"])[-1]
        return f"VERDICT {code}: RIGHT"

    with PlayedChat(answer, usage={"prompt_tokens": 10, "completion_tokens": 1}) as judge:
        config = Config(
            runs_dir=str(run_root),
            name="test",
            model=ModelConfig(path=str(tmp_path / "model")),
            reward=RewardConfig(
                equivalence="exact",
                domains={"general": DomainConfig(weights={"judge": 1.0, "format": 0.25})},
                judge=JudgeConfig(endpoint=EndpointConfig(url=judge.url, model="judge", concurrency=4)),
            ),
            data=DataConfig(task="chain-mod", template="none"),
            scorer=ScorerConfig(queue=4),
            endpoints=EndpointsConfig(rollouts=short_ipc),
        )
        path = run_root / "config.yaml"
        path.write_text(to_yaml(config))
        code = "import sys; from r1async import settings; from r1async.rewards import scorer; "
        code += "scorer.main(settings.load(sys.argv[1]))"
        buffer = Buffer(short_ipc)
        scorer = subprocess.Popen([sys.executable, "-c", code, str(path)], env=os.environ)
        try:
            buffer.welcome()
            ready = buffer.next("ready").header
            assert (ready["free"], ready["pools"]) == (4, [["judge", 4]])
            buffer.score("judge", [1, 2, 3, 4])
            for round_ in range(3):  # three times what the queue of `rules` holds
                leases = [100 + 4 * round_ + i for i in range(4)]
                buffer.score("rules", leases)
                assert {item[0]: item[1] for item in _items(buffer, len(leases))} == dict.fromkeys(leases, 1.2)
            assert [pools for _, pools in buffer.granted] == [[["judge", 0]]] * len(buffer.granted)
            assert max(free for free, _ in buffer.granted) == 4
            released.set()
            slow = {item[0]: item[1:] for item in _items(buffer, 4)}
            assert slow == {lease: [1.25, {"format": 1.0, "judge": 1.0}, "ok"] for lease in (1, 2, 3, 4)}
            while (stats := buffer.next("heartbeat").header["stats"])["pool:judge:verdicts"] < 4:
                buffer.send({"t": "alive"})
            assert stats["pool:judge:prompt_tokens"] == 10.0, "equal predictions are paid for once"
            assert (stats["pool:rules:verdicts"], stats["pool:rules:status:ok"]) == (16.0, 16.0)
            assert stats["pool:judge:p50_s"] > stats["pool:rules:p50_s"]
            slowest = Counter({key.rpartition(":")[2]: value for key, value in stats.items() if ":judge:slow:" in key})
            assert slowest.keys() == {"1", "2", "3", "4"}
        finally:
            scorer.kill()
            scorer.wait(END_S)
            buffer.close()


def _items(buffer: Buffer, count: int) -> list[list]:
    """The next verdicts, in one message or in several; what is granted meanwhile is for `rules` alone."""
    found: list[list] = []
    while len(found) < count:
        message = buffer.next("verdicts", "ready")
        if message.type == "ready":
            buffer.granted.append((message.header["free"], message.header["pools"]))
            continue
        found += message.header["items"]
        buffer.send({"t": "acks", "items": [[item[0], 1] for item in message.header["items"]], "lost": []})
    return found
