"""Layouts from a chat model behind an OpenAI-compatible endpoint (the extra `llm`)."""

from collections.abc import Sequence

from mudi.ground.chat import TIMEOUT, LlmError, again, ask
from mudi.layouts import Layout, LayoutError, layout_prompt, parse_layout

ATTEMPTS = 3


def llm_layout(
    prompt: str,
    names: Sequence[str],
    url: str,
    model: str,
    size: tuple[int, int] = (1024, 1024),
    api_key: str | None = None,
    timeout: float = TIMEOUT,
    attempts: int = ATTEMPTS,
) -> Layout:
    """Ask a chat model for a layout; an answer that can't be used is sent back with the reason.

    Args:
        prompt, names, size: see `layout_prompt`.
        url, model, api_key, timeout: see `ask`.
        attempts: questions in all, 1 or more.

    Raises:
        LlmError: the endpoint failed, or no attempt gave a layout.
    """
    question = text = layout_prompt(prompt, names, size)
    problem = ""
    for _ in range(attempts):
        answer = ask(url, model, text, api_key, timeout)
        try:
            return parse_layout(answer, names)
        except LayoutError as error:
            problem = str(error)
            text = again(question, answer, problem, "JSON")
    raise LlmError(f"{model} gave no layout in {attempts} attempts; the last time: {problem}")
