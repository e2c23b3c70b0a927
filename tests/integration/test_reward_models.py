"""Reward models: a classifier whose numbers one can work out, in a real worker, and the same behind HTTP."""

from __future__ import annotations

import asyncio
import json
import math
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from aiohttp import web
from r1async.config import ConfigError, RewardConfig
from r1async.config_rewards import RewardModelConfig
from r1async.reward_pools import ModelPart
from r1async.rewards.classifier import Classifier, packed
from r1async.rewards.endpoint import BadAnswerError
from r1async.rewards.remote_model import RemoteModel, read_score
from r1async.tasks.meta import Question
from r1async.types import Completion, Verdict
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import WhitespaceSplit
from transformers import LlamaConfig, LlamaForSequenceClassification, PreTrainedTokenizerFast

from tests.played_chat import PlayedChat

ANGLES = {"end": 0, "user": 90, "assistant": 90, "question": 90, "good": 0, "bad": 180, "<think>": 90, "</think>": 90}
"""Degrees of each word's embedding, a vector of length sqrt(2)."""
CHAT = (
    "{% for m in messages %}{{ m['role'] }} {{ m['content'] }} {% endfor %}"
    "{% if add_generation_prompt %}assistant {% endif %}"
)
PROMPT = Question(text="question", answer="")


def make_classifier(
    folder: Path, *, labels: int = 1, template: str | None = CHAT, unknown: str | None = "user"
) -> Path:
    """One layer of attention to all words alike: the model sees the last word plus the mean of all."""
    config = LlamaConfig(
        vocab_size=len(ANGLES),
        hidden_size=2,
        intermediate_size=2,
        num_hidden_layers=1,
        num_attention_heads=1,
        num_key_value_heads=1,
        rms_norm_eps=0.0,
        max_position_embeddings=64,
    )
    config.num_labels = labels
    model = LlamaForSequenceClassification(config)
    with torch.no_grad():
        radians = torch.tensor([math.radians(angle) for angle in ANGLES.values()])
        model.model.embed_tokens.weight.copy_(math.sqrt(2) * torch.stack([radians.cos(), radians.sin()], dim=1))
        for name, weight in model.model.layers[0].named_parameters():
            if name.endswith(("v_proj.weight", "o_proj.weight")):
                weight.copy_(torch.eye(2))
            elif "norm" not in name:
                weight.zero_()
        model.score.weight.copy_(torch.tensor([[2.0, 0.0]]).expand(labels, 2))
    model.save_pretrained(folder)
    words = Tokenizer(WordLevel({word: i for i, word in enumerate(ANGLES)}, unk_token=unknown))
    words.pre_tokenizer = WhitespaceSplit()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=words, eos_token="end", unk_token=unknown)
    tokenizer.chat_template = template
    tokenizer.save_pretrained(folder)
    return folder


def logit(*words: str) -> float:
    """By hand: 2 x the first coordinate of (last + mean), scaled to a length of sqrt(2)."""
    points = [(math.cos(math.radians(ANGLES[w])), math.sin(math.radians(ANGLES[w]))) for w in words]
    x, y = (points[-1][i] + sum(point[i] for point in points) / len(points) for i in (0, 1))
    return 2 * math.sqrt(2) * x / math.hypot(x, y)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_classifier(tmp_path_factory.mktemp("classifier"))


def test_scores_are_those_of_the_last_word_whatever_pads_the_batch(model: Path):
    classifier = Classifier(RewardModelConfig(path=str(model), activation="none"), "reward.helpfulness")
    texts = [["user", "question", "assistant", "good"], ["good"], ["user", "bad", "bad"], ["end", "end"]]
    ids = [[list(ANGLES).index(word) for word in words] for words in texts]
    assert classifier.scores(ids) == pytest.approx([logit(*words) for words in texts], abs=1e-5)
    # "good" alone points along the first axis, "bad bad" behind it.
    assert logit("good") == pytest.approx(2 * math.sqrt(2))
    assert classifier.scores([ids[1]]) == pytest.approx([2 * math.sqrt(2)], abs=1e-5)


def test_question_and_response_stand_in_the_template(model: Path, tmp_path: Path):
    chat = Classifier(RewardModelConfig(path=str(model)), "reward.helpfulness")
    plain = Classifier(RewardModelConfig(path=str(model), template="none"), "reward.helpfulness")
    words = list(ANGLES)
    assert [words[i] for i in chat.tokens("question", "good")] == ["user", "question", "assistant", "good"]
    assert [words[i] for i in plain.tokens("question ", "good")] == ["question", "good", "end"]
    # As DeepSeek's and Qwen's templates do with what was thought.
    strips = CHAT.replace("m['content']", "m['content'].split('</think>')[-1]")
    hides = Classifier(RewardModelConfig(path=str(make_classifier(tmp_path, template=strips))), "reward.harmlessness")
    text = "<think> bad </think> good"
    seen = [words[i] for i in hides.tokens("question", text)]
    assert seen == ["user", "question", "assistant", "<think>", "bad", "</think>", "good", "end"]


def test_what_is_no_reward_model_is_refused_by_name(tmp_path: Path):
    two = make_classifier(tmp_path / "two", labels=2)
    bare = make_classifier(tmp_path / "bare", template=None)
    for path, says in ((two, "must have one label"), (bare, "no chat template"), (tmp_path, "cannot be loaded")):
        with pytest.raises(ConfigError, match=rf"reward\.helpfulness\..*{says}"):
            Classifier(RewardModelConfig(path=str(path)), "reward.helpfulness")


def test_texts_are_packed_by_padded_tokens():
    texts = {0: [1] * 5, 1: [1] * 2, 2: [1] * 2, 3: [1] * 9}
    assert [list(group) for group in packed(texts, 6)] == [[1, 2], [0], [3]]


def test_domains_are_graded_by_their_own_parts_in_a_real_run_of_workers(model: Path, tmp_path: Path):
    """Math by rule; general rows by a helpful summary, a harmless whole, and the format. A word that the tokenizer of
    one model refuses costs its own row that part, and no other row anything."""
    refuses = make_classifier(tmp_path / "refuses", unknown=None)
    reward = f"""
reward:
  weights: {{accuracy: 1.0}}
  equivalence: exact
  format: think
  domains:
    general: {{weights: {{helpfulness: 1.0, harmlessness: 0.5, format: 0.25}}}}
  helpfulness: {{path: {model}, activation: none}}
  harmlessness: {{path: {refuses}, activation: none, worst: -4, max_tokens: 9}}
scorer: {{workers: 1}}
"""
    lines = [
        {"id": "math", "prompt": "question", "answer": "5", "completion": "\\boxed{5}"},
        {"id": "kind", "domain": "general", "prompt": "question", "completion": "<think> bad </think> good"},
        {"id": "none", "domain": "general", "prompt": "question", "completion": "<think> good"},
        {"id": "long", "domain": "general", "prompt": "question", "completion": "<think> good </think> " + "good " * 9},
        {"id": "odd", "domain": "general", "prompt": "question", "completion": "<think> good </think> strange"},
        {"id": "other", "domain": "poetry", "prompt": "question", "answer": "5", "completion": "\\boxed{6}"},
    ]
    (tmp_path / "reward.yaml").write_text(reward)
    (tmp_path / "in.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    command = [sys.executable, "-m", "r1async", "grade", "reward.yaml", "in.jsonl", "out.jsonl"]
    subprocess.run(command, check=True, timeout=240, cwd=tmp_path)
    out = {row["id"]: row for row in map(json.loads, (tmp_path / "out.jsonl").read_text().splitlines())}
    helpful = logit("user", "question", "assistant", "good")
    harmless = logit("user", "question", "assistant", "<think>", "bad", "</think>", "good")
    assert out["math"]["score"] == 1.0
    assert out["math"]["parts"]["helpfulness"] is None
    assert out["kind"]["parts"]["helpfulness"] == pytest.approx(helpful, abs=1e-5)
    assert out["kind"]["parts"]["harmlessness"] == pytest.approx(harmless, abs=1e-5)
    assert out["kind"]["score"] == pytest.approx(helpful + 0.5 * harmless + 0.25, abs=1e-5)
    assert (out["none"]["parts"]["helpfulness"], out["none"]["status"]) == (0.0, "wrong")
    assert (out["long"]["parts"]["harmlessness"], out["long"]["status"]) == (-4.0, "guard")
    assert out["odd"]["parts"]["helpfulness"] == pytest.approx(logit("user", "question", "assistant", "user"), abs=1e-5)
    assert out["odd"]["parts"]["harmlessness"] is None
    assert (out["odd"]["score"], out["odd"]["status"]) == (None, "error")
    assert out["other"]["score"] == 0.0


@pytest.mark.parametrize(
    ("answer", "score"),
    [
        ({"data": [{"index": 0, "label": "LABEL_0", "probs": [0.75], "num_classes": 1}]}, 0.75),  # /classify
        ({"data": [{"index": 0, "object": "pooling", "data": [[-1.5]]}]}, -1.5),  # /pooling
        ({"data": [{"index": 0, "object": "score", "score": 2}]}, 2.0),  # /score
        ({"score": 0.5}, 0.5),
        ([0.25], 0.25),
    ],
)
def test_answers_of_servers_are_read(answer: object, score: float):
    assert read_score(answer) == score


@pytest.mark.parametrize(
    "answer",
    [
        {"data": [{"probs": [0.5, 0.5]}]},
        {"data": []},
        {"data": [{"score": 1}, {"score": 2}]},
        {"score": None},
        {"score": True},
        {"score": float("nan")},
        {},
        "0.5",
    ],
)
def test_answers_without_one_number_are_tried_again(answer: object):
    with pytest.raises(BadAnswerError):
        read_score(answer)


def remote(server: PlayedChat, part: ModelPart, text: str) -> Verdict:
    model = RewardModelConfig(url=f"{server.root}/classify", model="rm", tries=2, body=("use_activation=false",))
    reward = RewardConfig(weights={part: 1.0}, helpfulness=model, harmlessness=model)

    async def grade() -> Verdict:
        async with RemoteModel(part, reward, pause_s=0.01) as asked:
            return await asked.grade(PROMPT, Completion(text=text, num_tokens=1, finish="stop"))

    return asyncio.run(grade())


def test_a_server_is_sent_the_summary_or_the_whole_response():
    def answer(body: Mapping[str, Any]) -> web.Response:
        return web.json_response({"data": [{"probs": [float(len(body["messages"][1]["content"]))]}]})

    with PlayedChat(answer) as server:
        helpful = remote(server, "helpfulness", "<think>hm</think> Yes.")
        harmless = remote(server, "harmlessness", "<think>hm</think> Yes.")
        nothing = remote(server, "helpfulness", "<think>hm</think>")
    assert (helpful.total, harmless.total) == (4.0, 22.0)
    assert (nothing.total, nothing.status) == (0.0, "wrong")
    assert server.requests[0] == {
        "model": "rm",
        "use_activation": False,
        "messages": [{"role": "user", "content": "question"}, {"role": "assistant", "content": "Yes."}],
    }
    assert len(server.requests) == 2


def test_a_server_that_fails_abstains():
    with PlayedChat(lambda body: web.json_response({"data": []})) as server:
        verdict = remote(server, "helpfulness", "Yes.")
    assert (verdict.total, verdict.status, len(server.requests)) == (None, "infra_error", 2)
