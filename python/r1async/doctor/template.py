"""Does the chat template fit the model? A wrong one trains on prompts that the model has never seen, without a word."""

from __future__ import annotations

from collections.abc import Collection
from typing import TYPE_CHECKING

from r1async.doctor.examine import Finding

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_QUESTION, _ANSWER = "What is 17 plus 25?", "It is 42."


def chat_template(tokenizer: PreTrainedTokenizerBase, stop_ids: Collection[int]) -> Finding:
    """The template opens the assistant's turn, keeps the question, and ends an answer with a stop token."""
    problems = _problems(tokenizer, stop_ids)
    if problems:
        return Finding("chat_template", False, "; ".join(problems))
    return Finding("chat_template", True, "opens the assistant's turn, and ends it with a stop token")


def _problems(tokenizer: PreTrainedTokenizerBase, stop_ids: Collection[int]) -> list[str]:
    if not tokenizer.chat_template:
        return ["the tokenizer has no chat template: set data.template=r1_zero or none"]
    asked = [{"role": "user", "content": _QUESTION}]
    answered = [*asked, {"role": "assistant", "content": _ANSWER}]
    closed = str(tokenizer.apply_chat_template(asked, tokenize=False, add_generation_prompt=False))
    opened = str(tokenizer.apply_chat_template(asked, tokenize=False, add_generation_prompt=True))
    full = str(tokenizer.apply_chat_template(answered, tokenize=False))
    found = []
    if opened.count(_QUESTION) != 1:
        found.append(f"the question is {opened.count(_QUESTION)} times in the prompt, not once")
    if not opened.startswith(closed) or opened == closed:
        found.append("the template does not open the assistant's turn: the model would go on with the user's")
    elif not full.startswith(opened):
        found.append("an answered conversation does not begin with the prompt that is sampled from")
    _, at, after = full.rpartition(_ANSWER)
    if not at:
        found.append("the template drops what the assistant said")
        return found
    ids = tokenizer.encode(after, add_special_tokens=False)
    if not ids or ids[0] not in stop_ids:
        ends = repr(tokenizer.decode(ids[:1])) if ids else "nothing"
        found.append(
            f"the template ends an answer with {ends}, at which sampling does not stop (stop tokens: "
            f"{[tokenizer.decode([each]) for each in sorted(stop_ids)]}): it is another model's template"
        )
    bos = tokenizer.bos_token_id
    ids = tokenizer.encode(opened, add_special_tokens=False)
    if bos is not None and ids[:2] == [bos, bos]:
        found.append("the prompt begins with two beginning-of-sequence tokens")
    return found
