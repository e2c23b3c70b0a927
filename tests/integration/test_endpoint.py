"""The client of chat endpoints against a server that answers, fails and lies as told, over a real socket."""

from __future__ import annotations

import itertools
import threading

import pytest
from aiohttp import web
from r1async.config import ConfigError
from r1async.config_endpoint import EndpointConfig
from r1async.rewards.endpoint import Chat, ChatClient, EndpointError, Reply

from tests.played_chat import PlayedChat, chat_completion

PAUSE_S = 0.01
QUESTION: Chat = [{"role": "user", "content": "Is 5 prime?"}]


def settings(server: PlayedChat, **changes) -> EndpointConfig:
    return EndpointConfig(url=server.url, model="judge", **changes)


def ask(server: PlayedChat, **changes) -> Reply | EndpointError:
    with ChatClient(settings(server, **changes), pause_s=PAUSE_S) as client:
        (reply,) = client.ask([QUESTION])
    return reply


def test_an_answer_comes_with_its_tokens_and_what_they_cost():
    with PlayedChat(lambda body: "yes", usage={"prompt_tokens": 200, "completion_tokens": 50}) as server:
        reply = ask(server, prompt_price=2.0, completion_price=10.0)
    assert isinstance(reply, Reply)
    assert (reply.text, reply.finish, reply.tries) == ("yes", "stop", 1)
    assert (reply.prompt_tokens, reply.completion_tokens) == (200, 50)
    assert reply.cost == pytest.approx((200 * 2.0 + 50 * 10.0) / 1e6)


def test_a_request_has_the_configured_fields():
    body = ("seed=7", 'chat_template_kwargs={"enable_thinking": false}', "reasoning_effort=low")
    with PlayedChat(lambda body: "yes") as server:
        ask(server, body=body, temperature=0.5, max_tokens=64)
        ask(server, temperature=-1, max_tokens=0)
    assert server.requests[0] == {
        "model": "judge",
        "messages": QUESTION,
        "temperature": 0.5,
        "max_tokens": 64,
        "seed": 7,
        "chat_template_kwargs": {"enable_thinking": False},
        "reasoning_effort": "low",
    }
    assert server.requests[1] == {"model": "judge", "messages": QUESTION}


def test_a_key_is_sent_and_a_missing_one_refused(monkeypatch):
    monkeypatch.setenv("JUDGE_KEY", "sk-1")
    with PlayedChat(lambda body: "yes") as server:
        ask(server, key_env="JUDGE_KEY")
        ask(server)
        assert server.headers[0]["Authorization"] == "Bearer sk-1"
        assert "Authorization" not in server.headers[1]
        monkeypatch.delenv("JUDGE_KEY")
        with pytest.raises(ConfigError, match="JUDGE_KEY"):
            ask(server, key_env="JUDGE_KEY")


@pytest.mark.parametrize(
    "failure",
    [
        pytest.param(lambda: web.Response(status=503, text="busy"), id="busy"),
        pytest.param(lambda: web.Response(status=429, headers={"Retry-After": "0.02"}), id="too many requests"),
        pytest.param(lambda: web.Response(text="<html>gateway</html>"), id="no JSON"),
        pytest.param(lambda: web.json_response({"choices": []}), id="no choice"),
        pytest.param(lambda: web.json_response(["choices"]), id="no object"),
        pytest.param(lambda: web.Response(body=b" " * (4 * 2**20 + 1)), id="too long"),
    ],
)
def test_a_failure_is_tried_again(failure):
    numbers = itertools.count()
    with PlayedChat(lambda body: failure() if next(numbers) < 2 else "yes") as server:
        reply = ask(server, tries=3)
    assert isinstance(reply, Reply)
    assert (reply.text, reply.tries) == ("yes", 3)


def test_a_connection_that_breaks_is_tried_again():
    broken = threading.Event()
    broken.set()
    numbers = itertools.count()
    with PlayedChat(lambda body: broken if next(numbers) < 1 else "yes") as server:
        reply = ask(server)
    assert isinstance(reply, Reply)
    assert reply.tries == 2


@pytest.mark.parametrize("status", [400, 401, 403, 404, 422, 302])
def test_what_the_server_will_refuse_again_is_asked_once(status):
    with PlayedChat(lambda body: web.Response(status=status, text="no such model")) as server:
        reply = ask(server)
    assert isinstance(reply, EndpointError)
    assert reply.refused
    assert f"status {status}: no such model" in str(reply)
    assert len(server.requests) == 1


def test_a_server_that_stays_down_is_given_up_after_all_tries():
    with PlayedChat(lambda body: web.Response(status=500, text="down")) as server:
        reply = ask(server, tries=3)
    assert isinstance(reply, EndpointError)
    assert (reply.refused, reply.tries) == (False, 3)
    assert len(server.requests) == 3


def test_nobody_who_listens_is_an_error_and_no_crash():
    with PlayedChat(lambda body: "yes") as server:
        pass
    reply = ask(server, tries=2)
    assert isinstance(reply, EndpointError)
    assert reply.tries == 2


def test_silence_ends_at_the_deadline_of_the_request_and_of_the_answer():
    with PlayedChat(lambda body: None) as server:
        reply = ask(server, tries=2, request_s=0.05)
        assert isinstance(reply, EndpointError)
        assert (reply.tries, "within 0.1 s" in str(reply)) == (2, True)
        reply = ask(server, tries=100, request_s=0.05, deadline_s=0.1)
        assert isinstance(reply, EndpointError)
        assert 1 <= reply.tries <= 3


def test_a_pause_that_would_pass_the_deadline_is_not_waited_for():
    refusal = {"Retry-After": "25"}
    with PlayedChat(lambda body: web.Response(status=429, headers=refusal)) as server:
        reply = ask(server, request_s=5.0, deadline_s=20.0)
    assert isinstance(reply, EndpointError)
    assert reply.tries == 1


def test_many_chats_are_asked_a_bounded_number_at_a_time_and_answered_in_order():
    with PlayedChat(lambda body: body["messages"][0]["content"]) as server:
        chats = [[{"role": "user", "content": str(i)}] for i in range(20)]
        told: dict[int, str] = {}
        with ChatClient(settings(server, concurrency=3)) as client:
            replies = client.ask(chats, answered=lambda i, reply: told.update({i: getattr(reply, "text", "")}))
            assert client.counts["answers"] == 20
            assert client.counts["without_usage"] == 20
    assert [reply.text for reply in replies if isinstance(reply, Reply)] == [str(i) for i in range(20)]
    assert told == {i: str(i) for i in range(20)}
    assert server.most_at_once == 3


def test_one_failure_leaves_the_other_answers():
    def answer(body):
        text = body["messages"][0]["content"]
        return web.Response(status=400, text="too long") if text == "1" else text

    with PlayedChat(answer) as server, ChatClient(settings(server)) as client:
        replies = client.ask([[{"role": "user", "content": str(i)}] for i in range(3)])
    assert [isinstance(reply, Reply) for reply in replies] == [True, False, True]


def test_content_that_is_missing_is_an_empty_answer():
    with PlayedChat(lambda body: web.json_response(chat_completion(None))) as server:
        reply = ask(server)
    assert isinstance(reply, Reply)
    assert reply.text == ""


@pytest.mark.parametrize(
    ("change", "names"),
    [
        ({"url": "localhost:8000"}, "endpoint.url"),
        ({"model": ""}, "endpoint.model"),
        ({"body": ("messages=[]",)}, "endpoint.body"),
        ({"body": ("seed",)}, "endpoint.body"),
        ({"deadline_s": 1.0}, "endpoint.deadline_s"),
    ],
)
def test_what_cannot_work_is_refused_by_name(change, names):
    fields: dict = {"url": "http://127.0.0.1:1/v1", "model": "judge", **change}
    with pytest.raises(ConfigError, match=names):
        ChatClient(EndpointConfig(**fields))
