"""The chat client against a server that streams, limits, fails and lies."""

import gzip
import socket
import sys
import time
from concurrent.futures import CancelledError

import pytest
from chat_server import KEY, failed, piece, said, streamed

from kanoclip.knowledge.client import Answer, ChatClient, ChatError, QuestionError, RefusedError, hide, host_of


def test_a_question_an_image_and_the_key_reach_the_server(server) -> None:
    client = ChatClient(server.url, KEY)
    assert client.ask("m", "what?") == Answer("a crack 0 in the nut", (10, 5))
    client.ask("m", "what is this?", "data:image/jpeg;base64,AAAA")
    plain, seen = server.requests
    assert plain["messages"] == [{"role": "user", "content": "what?"}]
    assert seen["messages"][0]["content"] == [
        {"type": "text", "text": "what is this?"},
        {"type": "image_url", "image_url": {"url": "data:image/jpeg;base64,AAAA"}},
    ]
    assert (plain["model"], plain["path"], plain["key"]) == ("m", "/v1/chat/completions", f"Bearer {KEY}")
    assert client.host == server.host


def test_key_and_address_come_from_the_environment(server, monkeypatch) -> None:
    monkeypatch.setenv("OPENAI_BASE_URL", server.url)
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    ChatClient().ask("m", "what?")
    assert server.requests[0]["key"] == f"Bearer {KEY}"


def test_a_server_of_ones_own_needs_no_key(server) -> None:
    assert ChatClient(server.url).ask("m", "what?").text == "a crack 0 in the nut"


@pytest.mark.parametrize("asked", [True, False])
def test_a_streamed_answer_is_read_whether_it_was_asked_for_or_not(server, asked) -> None:
    usage = '{"choices": [], "usage": {"prompt_tokens": 7, "completion_tokens": 3}}'
    pieces = piece("a cr"), piece(None), piece("ack"), piece("", finish_reason="stop"), usage, "[DONE]"
    server.plan = lambda number, request: streamed(*pieces)
    assert ChatClient(server.url, stream=asked).ask("m", "what?") == Answer("a crack", (7, 3))
    assert server.requests[0].get("stream", False) is asked


def test_a_whole_answer_is_read_when_a_stream_was_asked_for(server) -> None:
    assert ChatClient(server.url, stream=True).ask("m", "what?").text == "a crack 0 in the nut"


@pytest.mark.parametrize(
    "bad",
    [
        streamed(piece("a cr")),  # broken off
        streamed(piece("a cr"), '{"error": {"message": "out of memory"}}'),
        streamed("no json"),
        streamed('["no object"]'),
        (200, {"Content-Type": "application/json"}, b"<html>proxy</html>"),
        (200, {"Content-Type": "application/json"}, b'{"choices": []}'),
        failed(500),
        failed(503),
        failed(429),
        failed(408),
    ],
)
def test_what_passes_is_asked_again(server, bad) -> None:
    server.plan = lambda number, request: bad if number < 2 else said("a crack")
    assert ChatClient(server.url).ask("m", "what?").text == "a crack"
    assert len(server.requests) == 3


def test_a_limit_is_waited_for_as_long_as_the_server_asks(server) -> None:
    server.plan = lambda number, request: said("a crack") if number else failed(429, Retry_After="0.3")
    began = time.monotonic()
    assert ChatClient(server.url).ask("m", "what?").text == "a crack"
    assert 0.3 <= time.monotonic() - began < 5


def test_a_pause_of_an_hour_is_an_error_that_says_so(server) -> None:
    server.plan = lambda number, request: failed(429, "day limit", Retry_After="3600")
    with pytest.raises(ChatError, match=r"Retry-After: 3600 \(429 day limit\)\. Run the same command later"):
        ChatClient(server.url).ask("m", "what?")
    assert len(server.requests) == 1


@pytest.mark.parametrize(
    ("bad", "why"),
    [(failed(500, "broken"), "500 broken"), (streamed(piece("a")), "its answer broke off")],
)
@pytest.mark.parametrize("retries", [0, 8])
def test_a_question_that_fails_each_time_is_an_error_of_this_question(server, bad, why, retries) -> None:
    server.plan = lambda number, request: bad
    with pytest.raises(QuestionError, match=f"failed {retries + 1} times, last: {why}"):
        ChatClient(server.url, retries=retries).ask("m", "what?")
    assert len(server.requests) == retries + 1


@pytest.mark.parametrize(
    ("reply", "message"),
    [
        (
            failed(401, f"Incorrect API key provided: {KEY}"),
            r"refuses the key: Incorrect API key provided: \*\*\*\. Set",
        ),
        (failed(401, "x" * 190 + KEY), r"x{190}\*\*\*\. Set"),
        (failed(403, "not allowed"), "refuses the key: not allowed"),
        (failed(404, 'model "m" not found, try pulling it first'), "knows no model 'm'.*try pulling it first.*--model"),
        (failed(402, "no credit"), "wants to be paid: no credit"),
    ],
)
def test_what_will_not_pass_is_one_line_at_once(server, reply, message) -> None:
    server.plan = lambda number, request: reply
    with pytest.raises(ChatError, match=message) as error:
        ChatClient(server.url, KEY).ask("m", "what?")
    assert "\n" not in str(error.value)
    assert KEY not in str(error.value)
    assert error.value.__cause__ is None
    assert len(server.requests) == 1


def test_a_used_up_quota_is_an_error_of_all_questions(server) -> None:
    content = b'{"error": {"message": "no quota", "code": "insufficient_quota"}}'
    server.plan = lambda number, request: (429, failed(429)[1], content)
    with pytest.raises(ChatError, match="wants to be paid: no quota"):
        ChatClient(server.url, KEY).ask("m", "what?")


def test_a_refused_question_is_an_error_of_this_question_alone(server) -> None:
    server.plan = lambda number, request: failed(400, "content policy\n" + "x" * 500)
    with pytest.raises(RefusedError, match=r"refuses the question: 400 content policy x+\.\.\.$"):
        ChatClient(server.url).ask("m", "what?")
    assert len(server.requests) == 1


def test_no_server_is_told_at_once(server) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    with pytest.raises(ChatError, match=rf"No server answers at {address} \(.*refused\)\. Start it, or set --base_url"):
        ChatClient(f"http://{address}/v1", retries=1000).ask("m", "what?")


def test_a_server_that_was_there_is_waited_for(server) -> None:
    client = ChatClient(server.url, retries=2)
    client.ask("m", "what?")
    server.http.shutdown()
    server.http.server_close()
    with pytest.raises(QuestionError, match=r"failed 3 times, last: the connection broke \(ConnectError\)"):
        client.ask("m", "what?")


def test_no_answer_in_time_is_asked_again(server) -> None:
    def slow(number, request):
        time.sleep(0.3 if number == 0 else 0)
        return said("a crack")

    server.plan = slow
    assert ChatClient(server.url, timeout=0.1).ask("m", "what?").text == "a crack"
    assert len(server.requests) == 2


@pytest.mark.parametrize(("text", "tokens"), [(None, None), (7, None), ("", (1, 0))])
def test_an_answer_without_text_or_tokens_is_an_empty_one(server, text, tokens) -> None:
    server.plan = lambda number, request: said(text, tokens)
    assert ChatClient(server.url).ask("m", "what?") == Answer("", tokens)


def test_a_stopped_client_asks_no_more_and_tries_nothing_again(server) -> None:
    client = ChatClient(server.url)

    def fail(number, request):
        client.stop()
        return failed(500)

    server.plan = fail
    for _ in range(2):
        with pytest.raises(CancelledError):
            client.ask("m", "what?")
    assert len(server.requests) == 1


def test_openai_without_a_key_says_where_to_put_it(server) -> None:
    with pytest.raises(ChatError, match=r"No key for api\.openai\.com: set the environment variable OPENAI_API_KEY"):
        ChatClient()


def test_a_key_of_two_lines_is_not_shown(server) -> None:
    with pytest.raises(ChatError, match="not one line") as error:
        ChatClient(server.url, f"{KEY}\n")
    assert KEY not in str(error.value)


@pytest.mark.parametrize(
    "url", ["localhost:11434/v1", "ftp://host/v1", "http://", "http://host:port/v1", "http://[/v1"]
)
def test_an_address_that_is_none_is_refused(server, url) -> None:
    with pytest.raises(ChatError, match="The base URL is no address"):
        ChatClient(url)


def test_the_host_of_an_address_shows_no_password() -> None:
    assert host_of("https://me:secret@example.org:8000/v1?token=x") == "example.org:8000"
    assert host_of("https://api.openai.com/v1") == "api.openai.com"


def test_a_key_is_cut_out_wherever_a_server_repeats_it(server) -> None:
    server.plan = lambda number, request: said(f"a crack like {KEY}")
    assert ChatClient(server.url, KEY).ask("m", "what?").text == "a crack like ***"
    assert hide("none of them", "none") == "none of them"  # a placeholder


def test_a_missing_package_names_the_extra(server, monkeypatch) -> None:
    monkeypatch.setitem(sys.modules, "openai", None)
    with pytest.raises(ChatError, match=r"pip install 'kanoclip\[knowledge\]'"):
        ChatClient(server.url)


@pytest.mark.parametrize("status", [200, 404, 500])
@pytest.mark.parametrize("kind", ["application/json", "text/event-stream"])
def test_an_answer_without_end_is_not_read_into_memory(server, monkeypatch, status, kind) -> None:
    monkeypatch.setattr("kanoclip.knowledge.client.LONGEST", 100_000)
    server.plan = lambda number, request: (status, {"Content-Type": kind}, b"[" * 1_000_000)
    with pytest.raises(RefusedError, match="the server's answer is longer than 0 MB, which is not read"):
        ChatClient(server.url, retries=0).ask("m", "what?")


def test_a_compressed_answer_which_was_not_asked_for_is_not_unpacked(server) -> None:
    status, headers, content = said("a crack")
    server.plan = lambda number, request: (status, {**headers, "Content-Encoding": "gzip"}, gzip.compress(content))
    with pytest.raises(RefusedError, match="the server's answer is compressed, which is not read"):
        ChatClient(server.url).ask("m", "what?")


@pytest.mark.parametrize("content", [b"[" * 200_000, b'{"choices": [{"message": {"content": ' + b"9" * 5000])
def test_an_answer_made_to_do_harm_is_not_one_of_the_chat_api(server, content) -> None:
    server.plan = lambda number, request: (200, {"Content-Type": "application/json"}, content)
    with pytest.raises(QuestionError, match="its answer is not one of the chat API"):
        ChatClient(server.url, retries=0).ask("m", "what?")


def test_a_count_of_tokens_that_cannot_be_is_none(server) -> None:
    server.plan = lambda number, request: said("a crack", (10**4000, 3))
    assert ChatClient(server.url).ask("m", "what?") == Answer("a crack", None)


@pytest.mark.parametrize("status", [400, 401, 404, 500])
def test_what_a_server_says_cannot_steer_the_terminal(server, status) -> None:
    server.plan = lambda number, request: failed(status, "no \x1b[2J\x9b1m\u202e way")
    with pytest.raises((ChatError, QuestionError), match=r"no \\x1b\[2J\\x9b1m\\u202e way") as error:
        ChatClient(server.url, retries=0).ask("m", "what?")
    assert str(error.value).isprintable()
