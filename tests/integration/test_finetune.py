"""`r1async sft` and `r1async reward-model` from the command line: whole runs, killed and resumed, on several ranks."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from r1async.cli import main
from r1async.config_rewards import RewardModelConfig
from r1async.finetune.loop import Loop
from r1async.finetune.render import Renderer
from r1async.models.loading import load_model, load_tokenizer, stop_token_ids
from r1async.monitor.metrics import read_metrics
from r1async.rewards.classifier import Classifier
from transformers import AutoModelForSequenceClassification

from tests.tiny_models import save_tiny

pytestmark = pytest.mark.timeout(600)
STEPS = 12
WAIT_S = 240.0


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny(tmp_path_factory.mktemp("model"), hidden=32, mlp=48)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("data") / "sums.jsonl"
    sums = [(a, b) for a in range(10) for b in range(10)]
    rows = [{"prompt": f"{a}+{b}=", "completion": f"<answer>{(a + b) % 10}</answer>"} for a, b in sums]
    path.write_text("\n".join(map(json.dumps, rows)))
    return path


def words(root: Path, name: str, model: Path, data: Path, *more: str) -> list[str]:
    """A command line without its command."""
    config = root / "config.yaml"
    config.write_text("{}\n")
    settings = {
        "name": name, "runs_dir": root, "model.path": model, "data.path": data, "data.template": "none",
        "data.max_tokens": 32, "data.eval_rows": 4, "train.batch_size": 16, "train.epochs": 2, "train.lr": 3e-3,
        "train.micro_batch_tokens": 96, "train.checkpoint_every": 3, "monitor.tensorboard": "false",
    }  # fmt: skip
    return [str(config), *(f"{key}={value}" for key, value in settings.items()), *more]


def summary(root: Path, name: str) -> dict:
    return json.loads((root / name / "summary.json").read_text())


def losses(root: Path, name: str) -> list[float]:
    lines = {line["step"]: line["loss"] for line in read_metrics(root / name / "metrics" / "sft.jsonl", "step")}
    return [lines[step] for step in sorted(lines)]


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory, model: Path, data: Path) -> Path:
    """The root of a run that nobody disturbed, named `whole`."""
    root = tmp_path_factory.mktemp("whole")
    assert main(["sft", *words(root, "whole", model, data)]) == 0
    return root


def test_a_run_leaves_a_model_a_summary_and_a_report(whole: Path):
    told = summary(whole, "whole")
    assert told["steps"] == STEPS
    assert told["rows"]["trained"] == {
        # 96 rows: 4 tokens asked, <answer>d</answer><eos> learned
        "rows": 96, "examples": 96, "tokens": 96 * 8, "learned_tokens": 96 * 4, "truncated": 0, "dropped": {},
    }  # fmt: skip
    assert told["after"]["loss"] < told["before"]["loss"] - 0.5
    folder = whole / "whole" / "model"
    exported = load_model(folder)
    assert stop_token_ids(folder, load_tokenizer(folder)) == (2,)
    ids = torch.tensor([[10, 17, 11, 19]])
    assert int(exported(ids).logits[0, -1].argmax()) == 5  # it has learned to begin with <answer>
    assert "What became of the rows" in (whole / "whole" / "report.html").read_text()
    assert json.loads((whole / "whole" / "outcome.json").read_text())["outcome"] == "done"


def test_killed_at_any_point_it_ends_with_the_same_losses_and_weights(
    whole: Path, tmp_path: Path, model: Path, data: Path
):
    """kill -9 as soon as a checkpoint is there, whatever it does then; and again in the same command's second life."""
    command = words(tmp_path, "killed", model, data)
    for life in range(2):
        process = subprocess.Popen([sys.executable, "-m", "r1async", "sft", *command], stdout=subprocess.DEVNULL)
        deadline = time.monotonic() + WAIT_S
        while not (tmp_path / "killed" / "checkpoints" / f"step-{3 + 3 * life:06d}" / "checkpoint.json").exists():
            assert time.monotonic() < deadline, f"no checkpoint within {WAIT_S:.0f} s"
            assert process.poll() in (None, 0)
            time.sleep(0.01)
        process.send_signal(signal.SIGKILL)
        process.wait()
    assert main(["sft", *command]) == 0
    assert losses(tmp_path, "killed") == losses(whole, "whole")
    assert summary(tmp_path, "killed")["weights_sha256"] == summary(whole, "whole")["weights_sha256"]


def test_ctrl_c_saves_a_checkpoint_and_the_same_command_goes_on(
    whole: Path, tmp_path: Path, model: Path, data: Path, monkeypatch: pytest.MonkeyPatch
):
    step = Loop._step

    def interrupted(loop: Loop) -> None:
        step(loop)
        if loop.core.version == 5:
            signal.raise_signal(signal.SIGINT)

    command = ["sft", *words(tmp_path, "stopped", model, data)]
    with monkeypatch.context() as patched:
        patched.setattr(Loop, "_step", interrupted)
        assert main(command) == 130
    assert (tmp_path / "stopped" / "checkpoints" / "step-000005" / "checkpoint.json").is_file()
    assert main(command) == 0
    assert losses(tmp_path, "stopped") == losses(whole, "whole")


def test_a_folder_goes_on_with_its_own_run_only(
    whole: Path, model: Path, data: Path, capsys: pytest.CaptureFixture[str]
):
    command = ["sft", *words(whole, "whole", model, data)]
    assert main(command) == 0
    assert "is done already" in capsys.readouterr().out
    assert main([*command, "train.lr=1e-3"]) == 2
    assert "holds another run: train.lr was 0.003 and is 0.001. Set name=OTHER" in capsys.readouterr().err
    assert main([*command, "resume=false"]) == 2
    assert "resume: false" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("data.max_tokens=4", "data.path: none of 96 rows is left: dropped {'too_long': 96}"),
        ("data.eval_rows=100", "data.eval_rows: 100 holds out all 100 rows"),
        ("data.path=/nowhere.jsonl", "data.path: /nowhere.jsonl does not exist"),
        ("train.batch_sise=3", "train.batch_sise: unknown key; did you mean train.batch_size?"),
        ("train.micro_batch_tokens=8", "train.micro_batch_tokens: 8 cannot hold a row of data.max_tokens=32; set 32"),
        ("train.lr=0", "train.lr: must be above 0, got 0"),
        ("data.template=chat", "has no chat template; set data.template=r1_zero or none"),
        ("lora={rank: 2, targets: [q_prj]}", "lora.targets: 'q_prj' is no linear layer of this model"),
    ],
)
def test_a_mistake_is_named(tmp_path, model, data, capsys, override, message):
    assert main(["sft", *words(tmp_path, "wrong", model, data, override)]) == 2
    assert message in capsys.readouterr().err


def test_two_ranks_have_the_losses_of_one(whole: Path, tmp_path: Path, model: Path, data: Path):
    command = words(tmp_path, "two", model, data, "train.ranks=2")
    subprocess.run([sys.executable, "-m", "r1async", "sft", *command], check=True, timeout=WAIT_S)
    assert losses(tmp_path, "two") == pytest.approx(losses(whole, "whole"), abs=1e-5)


def test_a_reward_model_learns_which_answer_is_better(tmp_path: Path, model: Path, data: Path):
    """An answer between tags is better than the bare digit; the pairs held out are ranked right after training."""
    pairs = tmp_path / "pairs.jsonl"
    rows = [json.loads(line) for line in data.read_text().splitlines()]
    pairs.write_text(
        "\n".join(
            json.dumps({"prompt": row["prompt"], "chosen": row["completion"], "rejected": row["completion"][8]})
            for row in rows
        )
    )
    command = words(tmp_path, "rm", model, pairs, "data.eval_rows=20", "lora.rank=4", "train.lr=2e-2")
    assert main(["reward-model", *command]) == 0
    told = summary(tmp_path, "rm")
    assert told["after"]["accuracy"] == 1.0
    assert told["after"]["loss"] < 0.1
    folder = tmp_path / "rm" / "model"
    loaded = AutoModelForSequenceClassification.from_pretrained(folder)
    grader = Classifier(RewardModelConfig(path=str(folder), template="none", activation="none"), "reward.helpful")
    answers = ("<answer>8</answer>", "8")
    texts = [grader.tokens("4+4=", answer) for answer in answers]
    renderer = Renderer(folder, "none")
    assert texts == [renderer.scored("4+4=", answer) for answer in answers]
    scores = grader.scores(texts)
    assert scores[0] > scores[1] + 1
    assert scores == pytest.approx([loaded(torch.tensor([ids])).logits.item() for ids in texts], abs=1e-5)
    assert json.loads((folder / "r1async.json").read_text()) == {
        "kind": "reward-model", "template": "none",
    }  # fmt: skip
