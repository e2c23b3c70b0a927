"""A whole run whose rollouts have turns with a shell: real processes, the embedded engine, a tiny random model."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from r1async.cli import main
from r1async.swe.samples import make_samples
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast, Qwen2Config, Qwen2ForCausalLM

FENCE_TOKENS = len("\n<observation>\n```diff\n```\n</observation>\n")
"""What the last observation of a session without changes has, in bytes, which are this model's tokens."""


def byte_model(folder: Path) -> Path:
    """A random model that reads and writes any text, a byte a token."""
    vocabulary = {"<eos>": 0, **{sign: i + 1 for i, sign in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken("<eos>", special=True)])
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<eos>", pad_token="<eos>").save_pretrained(folder)
    torch.manual_seed(0)
    settings = {"hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 1, "tie_word_embeddings": True}
    heads = {"num_attention_heads": 2, "num_key_value_heads": 2, "max_position_embeddings": 4096}
    special = {"vocab_size": 257, "eos_token_id": 0, "pad_token_id": 0, "bos_token_id": None}
    model = Qwen2ForCausalLM(Qwen2Config(**settings, **heads, **special))
    model.generation_config.pad_token_id = 0
    model.save_pretrained(folder)
    return folder


def test_an_agent_run_is_a_config(run_root: Path, tmp_path: Path) -> None:
    make_samples(tmp_path)
    # So many tokens end a turn that a random model's turns are short; none has a command, so each session ends at once.
    stop = json.dumps([*"aeiouyrst12345ABCDEFGHIJKLMNO"])
    config = tmp_path / "shell.yaml"
    config.write_text(f"""
name: shell
runs_dir: {run_root}
steps: 2
model: {{ path: {byte_model(tmp_path / "model")} }}
data: {{ task: swe, path: {tmp_path}/instances.jsonl, template: none, max_prompt_tokens: 2600 }}
rollout: {{ tool: shell }}
sampling: {{ max_tokens: 400, stop: {stop} }}
group: {{ group_size: 2, lease_s: 120, rollout_deadline_s: 200 }}
generator: {{ slots: 4 }}
reward:
  weights: {{ swe: 1.0 }}
  swe: {{ repos: {tmp_path}/repos, cache: {tmp_path}/cache, answer: diff, container: none, turn_s: 20, files_mib: 64 }}
staleness: {{ max_staleness: 1 }}
learner: {{ groups_per_step: 1, checkpoint_every: 1 }}
eval: {{ prompts: 1, greedy: false }}
progress: {{ limit_s: 1900 }}
""")
    assert main(["run", str(config)]) == 0
    summary = json.loads((run_root / "shell" / "summary.json").read_text())
    audit = summary["audit"]
    assert audit["balanced"]
    assert audit["rollouts"]["trained"] == 4
    # Each has its sampled tokens, of which there is at least one, and the observation.
    assert audit["tokens"]["trained"] >= 4 * (FENCE_TOKENS + 1)
