"""How a question becomes the text that the model continues."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal

from r1async.tasks import PromptError
from r1async.tasks.tokenizer import PromptTokenizer

Template = Literal["none", "chat", "r1_zero"]
Question = str | Sequence[Mapping[str, str]]
"""A string, or chat messages."""

R1_ZERO = (
    "What follows is a conversation between a User and an Assistant. The User asks a question and the Assistant solves"
    " it. Before it answers, the Assistant reasons about the problem. Its reasoning stands between <think> and"
    " </think>, and its answer after that between <answer> and </answer>, that is: <think> the reasoning </think>"
    " <answer> the answer </answer>.\nUser: {question}\nAssistant:"
)
"""For base models that know no chat template: the structure of DeepSeek-R1 (arXiv 2501.12948), table 1."""


def apply_template(template: Template, question: Question, tokenizer: PromptTokenizer, *, prefill: bool) -> list[int]:
    """The question's tokens under a template.

    Args:
        prefill: r1_zero ends in <think>, so the completion begins inside the thought. A chat template decides
            that for itself.

    Raises:
        PromptError: the question's form does not fit the template.
    """
    text = render(template, question, tokenizer, prefill=prefill)
    # A chat template writes its special tokens itself; a second <bos> would be another prompt.
    return tokenizer.encode(text, add_special_tokens=template != "chat")


def render(template: Template, question: Question, tokenizer: PromptTokenizer, *, prefill: bool) -> str:
    """The text behind `apply_template`'s tokens."""
    if template == "chat":
        messages = [{"role": "user", "content": question}] if isinstance(question, str) else question
        return tokenizer.render_chat(messages)
    text = _plain(template, question)
    return text if template == "none" else R1_ZERO.format(question=text) + (" <think>" if prefill else "")


def question_text(question: Question) -> str:
    """The question for people and graders: the string, or the last message of the user."""
    if isinstance(question, str):
        return question
    return next((m["content"] for m in reversed(question) if m["role"] == "user"), question[-1]["content"])


def _plain(template: Template, question: Question) -> str:
    if isinstance(question, str):
        return question
    if len(question) == 1:
        return question[0]["content"]
    raise PromptError(
        f"{len(question)} chat messages do not fit data.template={template}, which takes one: set data.template=chat"
    )
