"""`r1async sft` and `r1async reward-model` on the command line. Imports nothing slow."""

from __future__ import annotations

import argparse
import logging
import sys
from collections.abc import Callable

from r1async.config_finetune import RewardModelConfig, SftConfig, reward_model_config, sft_config
from r1async.settings import to_yaml

SFT_HELP = """Supervised fine-tuning of a Hugging Face causal LM: loss on completions only.

  r1async sft configs/sft.yaml
  r1async sft configs/sft.yaml model.path=DIR data.path=FILE.jsonl train.epochs=2 lora.rank=16

Rows are conversations (`messages`), `prompt` and `completion`, or plain `text`, in JSONL, parquet or a folder saved by
`datasets`. Killed anywhere, the same command goes on and ends with the same weights. What it leaves is in
runs/<name>/: model/ (a Hugging Face directory), summary.json, report.html, metrics/, checkpoints/ (docs/finetune.md).

exit codes: 0 done, 1 a rank failed, 2 a mistake in the settings or the data, 130 ended by Ctrl-C (143: SIGTERM)"""

REWARD_MODEL_HELP = """A reward model from pairs of answers, by the Bradley-Terry likelihood.

  r1async reward-model configs/reward_model.yaml
  r1async reward-model configs/reward_model.yaml model.path=DIR data.path=PAIRS.jsonl

Rows have `prompt`, `chosen` and `rejected` (strings or messages). model/ is a sequence classifier of transformers with
one label, the reward. Resumes like `r1async sft`.

exit codes: 0 done, 1 a rank failed, 2 a mistake in the settings or the data, 130 ended by Ctrl-C (143: SIGTERM)"""

AddCommand = Callable[[str, str, str, Callable[[argparse.Namespace], int]], argparse.ArgumentParser]


def register(add: AddCommand) -> None:
    """Adds the two commands to the command line's.

    Args:
        add: makes a command with CONFIG and key=value words from name, help, description and what it runs.
    """
    for name, text, description, start in (
        ("sft", "supervised fine-tuning on your data", SFT_HELP, _sft),
        ("reward-model", "a reward model from pairs of answers (Bradley-Terry)", REWARD_MODEL_HELP, _reward_model),
    ):
        parser = add(name, text, description, start)
        parser.add_argument("--dry-run", action="store_true", help="print the resolved settings and end")


def _sft(options: argparse.Namespace) -> int:
    return _finetune("sft", sft_config(options.config, options.overrides), options)


def _reward_model(options: argparse.Namespace) -> int:
    return _finetune("reward-model", reward_model_config(options.config, options.overrides), options)


def _finetune(name: str, config: SftConfig | RewardModelConfig, options: argparse.Namespace) -> int:
    if options.dry_run:
        print(to_yaml(config))
        return 0
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    from r1async.finetune.run import finetune

    try:
        return finetune(config, [name, str(options.config), *options.overrides])
    except ValueError as error:  # settings, data, model, tokenizer, checkpoint: each names what is wrong
        print(f"r1async: {error}", file=sys.stderr, flush=True)
        return 2
