"""Against a local HTTP server that speaks as an OpenAI-compatible endpoint does."""

import sys
from typing import Any

import pytest
from endpoint import Endpoint, completion

from mudi.ground.chat import LlmError, ask
from mudi.pictures.chat_model import llm_layout

NAMES = ["olis robot", "hta corgi"]
GOOD = '{"boxes": {"olis robot": [0, 0, 0.5, 1], "hta corgi": [0.5, 0.5, 1, 1]}}'
BAD = '{"boxes": {"olis robot": [0, 0, 0.5, 1]}}'


def test_a_question_reaches_the_model_and_its_answer_comes_back(endpoint: Endpoint):
    endpoint.replies = [(200, completion("Good."))] * 2
    assert ask(endpoint.url, "tiny", "How are you?") == "Good."
    assert ask(endpoint.url, "tiny", "And now?", api_key="abc") == "Good."
    assert endpoint.questions == ["How are you?", "And now?"]
    path = "/v1/chat/completions"
    assert endpoint.requests == [
        {"path": path, "key": "Bearer none", "model": "tiny"},
        {"path": path, "key": "Bearer abc", "model": "tiny"},
    ]


@pytest.mark.parametrize(
    ("status", "body", "message"),
    [
        (401, {"error": {"message": "bad\nkey"}}, "refused: Error code: 401 .*bad"),
        (404, {"error": {"message": "no model tiny"}}, "refused: Error code: 404 .*no model tiny"),
        (500, "it broke", "refused: Error code: 500"),
        (200, completion(""), r"tiny answered nothing \(finish reason: stop\)"),
        (200, completion(None, refusal="I must not."), r"tiny answered nothing \(I must not.\)"),
        (200, {"choices": []}, "did not answer as a chat API does"),
        (200, {}, "did not answer as a chat API does"),
        (200, "<html>Welcome!</html>", "did not answer as a chat API does"),
        (200, "Welcome!", "did not answer in JSON; is it the API's base URL?"),
    ],
)
def test_a_failure_is_told_in_one_line(endpoint: Endpoint, status: int, body: Any, message: str):
    endpoint.replies = [(status, body)]
    with pytest.raises(LlmError, match=message) as caught:
        ask(endpoint.url, "tiny", "How are you?")
    assert endpoint.url in str(caught.value)
    assert "\n" not in str(caught.value)
    assert len(endpoint.questions) == 1


def test_a_server_that_repeats_the_key_is_not_repeated(endpoint: Endpoint):
    endpoint.replies = [(401, {"error": {"message": "wrong key abc-123"}})]
    with pytest.raises(LlmError, match=r"wrong key \*\*\*"):
        ask(endpoint.url, "tiny", "How are you?", api_key="abc-123")


def test_a_silent_server_is_left_after_the_timeout(endpoint: Endpoint):
    with pytest.raises(LlmError, match=r"no answer from tiny in 0.2 s"):
        ask(endpoint.url, "tiny", "How are you?", timeout=0.2)


def test_a_server_that_is_not_there_is_named(endpoint: Endpoint):
    gone = endpoint.url.replace(str(endpoint.server.server_port), "1")
    with pytest.raises(LlmError, match=r"127.0.0.1:1/v1: no connection \(.*refused\)"):
        ask(gone, "tiny", "How are you?")
    with pytest.raises(LlmError, match=r"localhost:8000/v1: no connection \(.*protocol"):
        ask("localhost:8000/v1", "tiny", "How are you?")


def test_a_missing_package_is_told_with_the_command_that_installs_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "openai", None)
    with pytest.raises(LlmError, match=r'openai is missing; pip install -e "\.\[llm\]"'):
        ask("http://127.0.0.1:1/v1", "tiny", "How are you?")


def test_a_layout_comes_from_the_first_usable_answer(endpoint: Endpoint):
    endpoint.replies = [(200, completion(f"Here it is: {GOOD}"))]
    layout = llm_layout("They dance.", NAMES, endpoint.url, "tiny")
    assert layout.boxes == ((0, 0, 0.5, 1), (0.5, 0.5, 1, 1))
    assert "The picture: They dance." in endpoint.questions[0]


def test_an_answer_in_per_cent_is_asked_for_again(endpoint: Endpoint):
    """Not read as pixels of 1024, a subject 4 % wide."""
    answer = '{"boxes": {"olis robot": [5, 30, 45, 95], "hta corgi": [50, 50, 95, 90]}}'
    endpoint.replies = [(200, completion(answer)), (200, completion(GOOD))]
    layout = llm_layout("They dance.", NAMES, endpoint.url, "tiny")
    assert layout.boxes == ((0, 0, 0.5, 1), (0.5, 0.5, 1, 1))
    assert "(no pixels, no per cent). Answer again" in endpoint.questions[1]


def test_the_model_is_told_what_was_wrong_and_asked_again(endpoint: Endpoint):
    endpoint.replies = [(200, completion(BAD)), (200, completion("Hm.")), (200, completion(GOOD))]
    assert len(llm_layout("They dance.", NAMES, endpoint.url, "tiny").boxes) == 2
    first, second, third = endpoint.questions
    assert second.startswith(first)
    assert BAD in second
    assert 'no box for "hta corgi"' in second
    assert third.startswith(first)
    assert "no JSON in 'Hm.'" in third
    assert BAD not in third


def test_a_model_that_never_gives_a_layout_is_given_up(endpoint: Endpoint):
    endpoint.replies = [(200, completion(BAD))] * 3
    with pytest.raises(LlmError, match=r'gave no layout in 2 attempts; .*no box for "hta corgi"'):
        llm_layout("They dance.", NAMES, endpoint.url, "tiny", attempts=2)
    assert len(endpoint.questions) == 2
