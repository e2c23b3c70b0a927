"""Tokens of a data set in files: made once, mapped into memory by every rank and by a resumed run.

A folder `<key>` with ``tokens.i4``, ``learned.u1``, ``offsets.npy`` and, as its last file, ``store.json``. The key is
a hash of all that decides the tokens, so another tokenizer, template or file makes another folder.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from r1async.config_finetune import PairDataConfig, SftDataConfig
from r1async.files import write_json
from r1async.finetune.render import Encoded, Renderer
from r1async.finetune.rows import Pair, SftRow
from r1async.tasks.file import RowError, Rows, digest_of

MARKER = "store.json"
FORMAT = 1
_TOKENIZER_FILES = (
    "tokenizer.json", "tokenizer.model", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json",
    "chat_template.jinja", "chat_template.json", "vocab.json", "merges.txt", "vocab.txt", "config.json",
    "generation_config.json",
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Dropped:
    """A row that is not trained."""

    reason: str


class Cut(list[Encoded]):
    """An example whose end is missing."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Account:
    """What became of the rows: rows = examples + everything dropped."""

    rows: int
    examples: int
    tokens: int
    learned_tokens: int
    truncated: int
    dropped: Mapping[str, int]


@dataclass(frozen=True, kw_only=True, slots=True)
class Store:
    """Examples, each of `width` sequences: 1 for fine-tuning, 2 (chosen, rejected) for a pair."""

    width: int
    token_ids: NDArray[np.int32]
    learned: NDArray[np.uint8]
    offsets: NDArray[np.int64]
    """(sequences + 1,)"""
    account: Account

    def __len__(self) -> int:
        return (len(self.offsets) - 1) // self.width

    def sequences(self, example: int) -> list[tuple[NDArray[np.int32], NDArray[np.uint8]]]:
        """Tokens and learned marks of one example's sequences."""
        first = example * self.width
        bounds = [slice(self.offsets[i], self.offsets[i + 1]) for i in range(first, first + self.width)]
        return [(self.token_ids[bound], self.learned[bound]) for bound in bounds]

    @property
    def lengths(self) -> NDArray[np.int64]:
        """(examples, width) tokens of each sequence."""
        return np.diff(self.offsets).reshape(-1, self.width)


def store_key(
    path: Path, model_dir: Path, data: SftDataConfig | PairDataConfig, rows: range, *, held_out: bool = False
) -> str:
    """Names everything that decides the tokens.

    Args:
        held_out: the rows are those that are not trained; with no such rows, `rows` alone would not tell them from all.
    """
    tokenizer = {
        name: hashlib.sha256((model_dir / name).read_bytes()).hexdigest()
        for name in _TOKENIZER_FILES
        if (model_dir / name).is_file()
    }
    told = {**asdict(data), "path": "", "eval_path": "", "shuffle": True}
    deciding = [FORMAT, digest_of(path), tokenizer, told, [rows.start, rows.stop], *(["held out"] if held_out else [])]
    return hashlib.sha256(json.dumps(deciding, sort_keys=True).encode()).hexdigest()[:16]


def encode_rows(
    rows: Rows[SftRow], chosen: range, renderer: Renderer, data: SftDataConfig
) -> Iterator[Sequence[Encoded] | Dropped]:
    """One example or the reason against it for each row.

    Raises:
        RowError: a row that does not fit the template, or is too long where that is refused.
    """
    for index in chosen:
        row = rows[index]
        encoded = renderer.row(row, turns=data.turns)
        if not any(encoded.learned):
            yield Dropped("empty")
        elif len(encoded.token_ids) <= data.max_tokens:
            yield [encoded]
        elif data.too_long == "refuse":
            raise _too_long(row.where, len(encoded.token_ids), data.max_tokens)
        elif data.too_long == "drop":
            yield Dropped("too_long")
        elif any(encoded.learned[: data.max_tokens]):
            yield Cut([Encoded(encoded.token_ids[: data.max_tokens], encoded.learned[: data.max_tokens])])
        else:
            yield Dropped("prompt_too_long")


def encode_pairs(
    rows: Rows[Pair], chosen: range, renderer: Renderer, data: PairDataConfig
) -> Iterator[Sequence[Encoded] | Dropped]:
    """The same for pairs."""
    for index in chosen:
        pair = rows[index]
        try:
            both = [renderer.scored(pair.prompt, answer) for answer in (pair.chosen, pair.rejected)]
        except ValueError as error:
            raise RowError(f"{pair.where}: {error}") from error
        longest = max(map(len, both))
        if not (pair.chosen.strip() and pair.rejected.strip()):
            yield Dropped("empty")
        elif longest <= data.max_tokens:
            yield [Encoded(ids, [True] * len(ids)) for ids in both]
        elif data.too_long == "refuse":
            raise _too_long(pair.where, longest, data.max_tokens)
        else:
            yield Dropped("too_long")


def make_store(folder: Path, examples: Iterable[Sequence[Encoded] | Dropped], width: int) -> Store:
    """Writes the examples beside their place and renames them there: whoever finds the folder finds all of it."""
    staging = folder.with_name(f".{folder.name}.{os.getpid()}")
    staging.mkdir(parents=True, exist_ok=True)
    try:
        offsets, dropped, truncated, learned_tokens = [0], Counter[str](), 0, 0
        with (staging / "tokens.i4").open("wb") as tokens, (staging / "learned.u1").open("wb") as learned:
            for example in examples:
                if isinstance(example, Dropped):
                    dropped[example.reason] += 1
                    continue
                truncated += isinstance(example, Cut)
                for sequence in example:
                    tokens.write(np.asarray(sequence.token_ids, np.int32).tobytes())
                    learned.write(np.asarray(sequence.learned, np.uint8).tobytes())
                    offsets.append(offsets[-1] + len(sequence.token_ids))
                    learned_tokens += sum(sequence.learned)
        np.save(staging / "offsets.npy", np.asarray(offsets, np.int64))
        examples_kept = (len(offsets) - 1) // width
        account = Account(
            rows=examples_kept + dropped.total(), examples=examples_kept, tokens=offsets[-1],
            learned_tokens=learned_tokens, truncated=truncated, dropped=dict(sorted(dropped.items())),
        )  # fmt: skip
        write_json(staging / MARKER, {"width": width, **asdict(account)})
        folder.parent.mkdir(parents=True, exist_ok=True)
        staging.rename(folder)
    finally:
        shutil.rmtree(staging, ignore_errors=True)
    return open_store(folder)


def open_store(folder: Path) -> Store:
    """A store that `make_store` made."""
    told = json.loads((folder / MARKER).read_text())
    width: int = told.pop("width")
    return Store(
        width=width,
        token_ids=_mapped(folder / "tokens.i4", np.dtype(np.int32)),
        learned=_mapped(folder / "learned.u1", np.dtype(np.uint8)),
        offsets=np.load(folder / "offsets.npy"),
        account=Account(**told),
    )


def _mapped(path: Path, dtype: np.dtype) -> NDArray:
    # An empty file cannot be mapped.
    return np.memmap(path, dtype, "r") if path.stat().st_size else np.zeros(0, dtype)


def _too_long(where: str, tokens: int, limit: int) -> RowError:
    return RowError(f"{where}: {tokens} tokens, data.max_tokens allows {limit}: raise it, or set data.too_long=drop")
