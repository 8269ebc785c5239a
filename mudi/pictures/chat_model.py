"""Layouts from a chat model behind an OpenAI-compatible endpoint (the extra `llm`)."""

import json
import os
from collections.abc import Sequence
from typing import Any

from mudi.ground.errors import SetupError
from mudi.layouts import Layout, LayoutError, layout_prompt, parse_layout

TIMEOUT = 60.0  # s
ATTEMPTS = 3
NO_KEY = "none"


class LlmError(SetupError):
    """The chat model gave no usable answer; the message is one line that says why."""


def ask(
    url: str, model: str, text: str, api_key: str | None = None, timeout: float = TIMEOUT
) -> str:
    """Put one message to a chat model and return its answer.

    Args:
        url: base URL of the API, as in http://localhost:8000/v1.
        model: its name there.
        api_key: None takes OPENAI_API_KEY from the environment; local servers want none.
        timeout: longest silence of the server (s).

    Raises:
        LlmError: no `openai` package, no server, no such model, no permission, no answer in time
            or an empty one.
    """
    try:
        import openai
    except ImportError as error:
        raise LlmError('the package openai is missing; pip install -e ".[llm]"') from error
    key = api_key or os.environ.get("OPENAI_API_KEY") or NO_KEY
    try:
        client = openai.OpenAI(base_url=url, api_key=key, timeout=timeout, max_retries=0)
        completion = client.chat.completions.create(
            model=model, messages=[{"role": "user", "content": text}]
        )
    except openai.APITimeoutError as error:
        raise LlmError(f"{url}: no answer from {model} in {timeout:g} s") from error
    except openai.APIConnectionError as error:
        raise LlmError(f"{url}: no connection ({_line(error.__cause__)})") from error
    except openai.OpenAIError as error:
        told = _line(error) if key == NO_KEY else _line(error).replace(key, "***")
        raise LlmError(f"{url} refused: {told}") from error
    except json.JSONDecodeError as error:
        raise LlmError(f"{url} did not answer in JSON; is it the API's base URL?") from error
    return _content(completion, url, model)


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
            text = (
                f"{question}\n\nYour last answer was:\n{answer}\n\n"
                f"It can't be used: {problem}. Answer again, with the mended JSON only."
            )
    raise LlmError(f"{model} gave no layout in {attempts} attempts; the last time: {problem}")


def _content(completion: Any, url: str, model: str) -> str:
    choices = getattr(completion, "choices", None)  # a web page comes as str, other JSON without
    if not choices or choices[0].message is None:
        raise LlmError(f"{url} did not answer as a chat API does; is it the API's base URL?")
    message = choices[0].message
    if not message.content:
        reason = message.refusal or f"finish reason: {choices[0].finish_reason}"
        raise LlmError(f"{url}: {model} answered nothing ({_line(reason)})")
    return message.content


def _line(text: object) -> str:
    return " ".join(str(text).split())
