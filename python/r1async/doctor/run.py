"""`r1async doctor CONFIG`: makes each engine that the settings name, examines it, prints what was found."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path

from r1async.config import Config
from r1async.doctor.examine import Examination, Finding, Patient
from r1async.doctor.template import chat_template
from r1async.engines import generator_python, kinds
from r1async.generator.engines import make_engine, max_len, scratch_folder


def doctor(config: Config, words: Sequence[str], only: str = "") -> int:
    """Examines the engines; returns the exit code: 0 all is well, 1 something is not.

    Args:
        config: with a model.
        words: the command's own words after `doctor`, to examine an engine under another Python.
        only: one engine of them.
    """
    named = list(dict.fromkeys(kinds(config.generator.engine)))
    wrong = False
    if not only:
        wrong = not _say("tokenizer", [_template(config)])
    for index, kind in enumerate(kinds(config.generator.engine)):
        if kind not in named or only not in ("", kind):
            continue
        named.remove(kind)
        python = generator_python(config, index)
        if Path(python) != Path(sys.executable):
            command = [python, "-m", "r1async", "doctor", *words, f"model.path={config.model.path}"]
            command += ["cold_start.enabled=false", "--engine", kind]
            wrong |= subprocess.run(command, check=False, env=os.environ).returncode != 0
        else:
            wrong |= not _examine(config, kind)
    return int(wrong)


def _template(config: Config) -> Finding:
    from r1async.models.loading import load_tokenizer, stop_token_ids

    if config.data.template != "chat":
        return Finding("chat_template", True, f"data.template={config.data.template} uses none")
    tokenizer = load_tokenizer(config.model.path)
    return chat_template(tokenizer, stop_token_ids(config.model.path, tokenizer, config.sampling.stop))


def _examine(config: Config, kind: str) -> bool:
    from r1async.models.loading import load_config, load_model, read_tensors

    arrived = threading.Event()
    name = f"doctor-{kind}"
    with scratch_folder(config, name) as scratch:
        # Every token as it comes, and none that ends a request: what is examined has to be long enough to be met.
        examined = replace(config, generator=replace(config.generator, chunk_tokens=1))
        engine = make_engine(examined, kind, name, scratch, arrived.set, stops=False)
        try:
            path = config.model.path
            model = load_config(path)
            examination = Examination(
                Patient(engine, arrived, config.generator.stall_deadline_s),
                (load_model(path, attention="sdpa").eval(), load_model(path, attention="sdpa").eval()),
                read_tensors(path),
                dtype=config.model.dtype,
                temperature=config.sampling.temperature,
                max_len=max_len(config, kind, model),
                vocabulary=int(model.vocab_size),
            )
            return _say(engine.describe(), examination.run())
        finally:
            engine.close()


def _say(what: str, findings: Iterable[Finding]) -> bool:
    """Prints as they come, for an engine's checks take minutes on a large model."""
    print(what, flush=True)
    well = True
    for finding in findings:
        well &= finding.ok
        print(f"  {'ok  ' if finding.ok else 'FAIL'} {finding.check}: {finding.text}", flush=True)
    return well
