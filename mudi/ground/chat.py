"""One question to a chat model behind an OpenAI-compatible endpoint (the extra `llm`)."""

import base64
import json
import os
from io import BytesIO
from typing import Any

from PIL import Image

from mudi.ground.errors import SetupError

TIMEOUT = 60.0  # s
NO_KEY = "none"


class LlmError(SetupError):
    """The chat model gave no usable answer; the message is one line that says why."""


def ask(
    url: str,
    model: str,
    text: str,
    api_key: str | None = None,
    timeout: float = TIMEOUT,
    image: Image.Image | None = None,
) -> str:
    """Put one message to a chat model and return its answer.

    Args:
        url: base URL of the API, as in http://localhost:8000/v1.
        model: its name there.
        api_key: None takes OPENAI_API_KEY from the environment; local servers want none.
        timeout: longest silence of the server (s).
        image: what the text asks about, sent as it is, as a PNG; the model must be one that sees.

    Raises:
        LlmError: no `openai` package, no server, no such model, no permission, no answer in time
            or an empty one.
    """
    try:
        import openai
    except ImportError as error:
        raise LlmError('the package openai is missing; pip install -e ".[llm]"') from error
    key = api_key or os.environ.get("OPENAI_API_KEY") or NO_KEY
    message: Any = {"role": "user", "content": text if image is None else _parts(text, image)}
    try:
        client = openai.OpenAI(base_url=url, api_key=key, timeout=timeout, max_retries=0)
        completion = client.chat.completions.create(model=model, messages=[message])
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


def _parts(text: str, image: Image.Image) -> list[dict[str, Any]]:
    """Return a message of a picture and a text, as the API has it."""
    file = BytesIO()
    image.save(file, "PNG")
    data = base64.b64encode(file.getvalue()).decode()
    picture = {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{data}"}}
    return [picture, {"type": "text", "text": text}]


def _content(completion: Any, url: str, model: str) -> str:
    choices = getattr(completion, "choices", None)  # a web page comes as str, other JSON without
    if not choices or choices[0].message is None:
        raise LlmError(f"{url} did not answer as a chat API does; is it the API's base URL?")
    message = choices[0].message
    if not message.content:
        reason = message.refusal or f"finish reason: {choices[0].finish_reason}"
        raise LlmError(f"{url}: {model} answered nothing ({_line(reason)})")
    return message.content


def again(question: str, answer: str, problem: str, wanted: str) -> str:
    """Return what is asked after an answer that can't be used."""
    return (
        f"{question}\n\nYour last answer was:\n{answer}\n\n"
        f"It can't be used: {problem}. Answer again, with the mended {wanted} only."
    )


def _line(text: object) -> str:
    return " ".join(str(text).split())
