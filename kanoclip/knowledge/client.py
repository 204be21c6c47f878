"""Client of the chat API that OpenAI, Ollama, vLLM and llama.cpp share.

The package ``openai`` sends, streams, limits the time and tries again (after 0.5 seconds, doubled up to 8, or after the
pause of up to two minutes that a server asks for). Here is what it leaves open: when to give up, what to tell people,
and that the key is shown nowhere.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from concurrent.futures import CancelledError
from typing import TYPE_CHECKING, Any, NamedTuple
from urllib.parse import urlsplit

import httpx2

from kanoclip.types import KanoclipError, printable

if TYPE_CHECKING:
    from openai import APIStatusError
    from openai.types.chat import ChatCompletion, ChatCompletionChunk

OPENAI = "https://api.openai.com/v1"
LONGEST = 16_000_000  # bytes of an answer, with all that is around it: phrases take some hundred


class ChatError(KanoclipError):
    """The server cannot be used: every other question would fail the same way."""


class QuestionError(Exception):
    """This question has no answer; others may have."""


class RefusedError(QuestionError):
    """The server works, but refuses this question."""


class _BrokenAnswerError(Exception):
    """An answer began, and cannot be read to its end."""


class Answer(NamedTuple):
    """What a model said.

    Attributes:
        text: As it was sent, without the key.
        tokens: Of the question and of the answer, as the server counts them; None if it does not.
    """

    text: str
    tokens: tuple[int, int] | None


class _AtMost(httpx2.SyncByteStream):
    """The bytes of a response, if they are not too many; compressed ones, which could become any number, are refused.

    Raises:
        RefusedError: If it is longer than ``LONGEST``, or compressed.
    """

    def __init__(self, response: httpx2.Response) -> None:
        self.inner: Any = response.stream
        self.compressed = response.headers.get("content-encoding", "identity") != "identity"

    def __iter__(self) -> Iterator[bytes]:
        read = 0
        for chunk in self.inner:
            read += len(chunk)
            if read > LONGEST or self.compressed:
                what = "compressed" if self.compressed else f"longer than {LONGEST // 1_000_000} MB"
                raise RefusedError(f"the server's answer is {what}, which is not read")
            yield chunk

    def close(self) -> None:
        """Close the connection."""
        self.inner.close()


def _bound(response: httpx2.Response) -> None:
    response.stream = _AtMost(response)


class _Http(httpx2.Client):
    """HTTP client for ``openai`` that ends its retries after ``stop``, and where no server has ever answered."""

    def __init__(self, host: str) -> None:
        hooks: dict[str, list[Any]] = {"response": [_bound]}  # of redirections and errors too
        super().__init__(follow_redirects=True, headers={"accept-encoding": "identity"}, event_hooks=hooks)
        self.host = host
        self.reached = False
        self.stopped = False

    def send(self, request: httpx2.Request, **options: Any) -> httpx2.Response:
        """Send one request.

        Raises:
            CancelledError: After ``stop``.
            ChatError: No server has ever answered. ``openai`` passes on both without trying again.
            httpx2.TransportError: A server that was there does not answer. ``openai`` tries again.
        """
        if self.stopped:
            raise CancelledError
        try:
            response = super().send(request, **options)
        except httpx2.TransportError as error:
            if self.reached or isinstance(error, httpx2.TimeoutException):
                raise
            why = _one_line(error)
            raise ChatError(f"No server answers at {self.host} ({why}). Start it, or set --base_url.") from None
        self.reached = True
        return response


class ChatClient:
    """Asks questions, with or without an image. Thread-safe.

    The key goes to the server and nowhere else: it is cut out of every answer and every message.

    Args:
        base_url: Address up to and with ``/v1``. Null: the environment's OPENAI_BASE_URL, else OpenAI's.
        key: Null: the environment's OPENAI_API_KEY. A server of your own may need none.
        retries: How often a question is asked again that the server could not answer just now.
        timeout: Seconds to wait for an answer to begin, and between two pieces of one.
        stream: Ask for the answer in pieces, which keeps the connection to a slow server behind a proxy open. Servers
            that answer the other way are understood too.

    Raises:
        ChatError: The package ``openai`` is missing, there is no key, or the address is not one.
    """

    def __init__(
        self,
        base_url: str | None = None,
        key: str | None = None,
        retries: int = 6,
        timeout: float = 120.0,
        stream: bool = False,
    ) -> None:
        try:
            from openai import OpenAI
        except ImportError as error:
            raise ChatError("The package openai is missing. Install it: pip install 'kanoclip[knowledge]'") from error
        url = base_url or os.environ.get("OPENAI_BASE_URL") or OPENAI
        key = key or os.environ.get("OPENAI_API_KEY") or ""
        self.host = host_of(url)
        if not key and self.host == host_of(OPENAI):
            raise ChatError(
                f"No key for {self.host}: set the environment variable OPENAI_API_KEY. A server of your own needs "
                f"none: --base_url http://localhost:11434/v1"
            )
        if not key.isascii() or not key.isprintable() or key != key.strip():
            raise ChatError("The key is not one line of plain characters. Set the environment variable OPENAI_API_KEY.")
        self.retries = retries
        self.stream = stream
        self._key = key
        self._http = _Http(self.host)
        self._api = OpenAI(
            base_url=url, api_key=key or "none", max_retries=retries, timeout=timeout, http_client=self._http
        )

    def ask(self, model: str, question: str, image: str | None = None) -> Answer:
        """Ask one question.

        Args:
            model: Name that the server knows it by.
            question: In words.
            image: Address of a picture, ``data:image/jpeg;base64,...``.

        Raises:
            ChatError: No server, a refused key or an unknown model: nothing else will be answered either.
            RefusedError: The server refuses this question.
            QuestionError: It fails again and again.
            CancelledError: ``stop`` was called.
        """
        content: Any = question
        if image is not None:
            content = [{"type": "text", "text": question}, {"type": "image_url", "image_url": {"url": image}}]
        for _ in range(self.retries + 1):  # openai tries again until an answer begins; this is for one that breaks off
            try:
                return self._ask(model, content)
            except _BrokenAnswerError as error:
                why = self._shown(error)
        raise self._failed(why)

    def stop(self) -> None:
        """Send nothing more, from any thread; answers on their way still arrive."""
        self._http.stopped = True

    def _ask(self, model: str, content: Any) -> Answer:
        import openai
        from openai.types.chat import ChatCompletion, ChatCompletionChunk

        options: dict[str, Any] = {"stream": True, "stream_options": {"include_usage": True}} if self.stream else {}
        chat = self._api.chat.completions.with_streaming_response  # reads nothing yet: the header says which kind it is
        try:
            with chat.create(model=model, messages=[{"role": "user", "content": content}], **options) as response:
                try:
                    if "event-stream" in response.headers.get("content-type", ""):
                        raw = response.http_response
                        answer = _joined(openai.Stream(cast_to=ChatCompletionChunk, response=raw, client=self._api))
                    else:
                        answer = _whole(ChatCompletion.construct(**response.json()))
                except (openai.APIError, httpx2.HTTPError) as error:
                    raise _BrokenAnswerError(f"its answer broke off: {error}") from None
                except (
                    ValueError,
                    LookupError,
                    TypeError,
                    AttributeError,
                    RecursionError,
                ):  # all of what the server sent
                    raise _BrokenAnswerError("its answer is not one of the chat API") from None
        except openai.APIStatusError as error:
            raise self._meaning(model, error) from None
        except openai.APITimeoutError:
            raise self._failed("it did not answer in time") from None
        except openai.APIConnectionError as error:
            raise self._failed(f"the connection broke ({type(error.__cause__).__name__})") from None
        return answer._replace(text=hide(answer.text, self._key))

    def _meaning(self, model: str, error: APIStatusError) -> Exception:
        """Return the error that a status of the server means."""
        code, body = error.status_code, error.body
        message = body.get("message") or body.get("error") if isinstance(body, dict) else body
        said = self._shown(str(message or f"status {code}").rstrip(". \n"))
        pause = error.response.headers.get("retry-after")
        if code in (401, 403):
            return ChatError(f"{self.host} refuses the key: {said}. Set the environment variable OPENAI_API_KEY.")
        if code == 404:
            return ChatError(f"{self.host} knows no model {model!r}, or is not a chat server: {said}. Set --model, "
                             f"--vqa_model or --base_url.")  # fmt: skip
        if code == 402 or error.code == "insufficient_quota":
            return ChatError(f"{self.host} wants to be paid: {said}")
        if code not in (408, 409, 429) and code < 500:
            return RefusedError(f"{self.host} refuses the question: {code} {said}")
        if pause:
            return ChatError(f"{self.host} asks for a pause, Retry-After: {self._shown(pause)} ({code} {said}). Run "
                             f"the same command later: what is answered is kept.")  # fmt: skip
        return self._failed(f"{code} {said}")

    def _failed(self, why: str) -> QuestionError:
        return QuestionError(f"{self.host} failed {self.retries + 1} times, last: {why}")

    def _shown(self, said: object) -> str:
        return _one_line(hide(str(said), self._key))  # in this order: half a key would not be found


def hide(text: str, *keys: str) -> str:
    """Replace keys in a text by stars; one of less than 6 letters is a placeholder such as "none", and stays."""
    for key in keys:
        text = text.replace(key, "***") if len(key) >= 6 else text
    return text


def host_of(url: str) -> str:
    """Return host and port of an address: what may be shown and kept of it.

    Raises:
        ChatError: If it is no address of the web.
    """
    try:
        parts = urlsplit(url)
        port = "" if parts.port is None else f":{parts.port}"
    except ValueError:
        parts, port = urlsplit(""), ""
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise ChatError("The base URL is no address. Set --base_url to one such as http://localhost:11434/v1")
    return f"{parts.hostname}{port}"


def _whole(reply: ChatCompletion) -> Answer:
    text = reply.choices[0].message.content
    return Answer(text if isinstance(text, str) else "", _tokens(reply))


def _joined(chunks: Iterable[ChatCompletionChunk]) -> Answer:
    """Put the pieces of a streamed answer together."""
    pieces: list[str] = []
    tokens, ended = None, False
    for chunk in chunks:
        for choice in chunk.choices:
            pieces.append(choice.delta.content or "")
            ended = ended or bool(choice.finish_reason)
        tokens = _tokens(chunk) or tokens
    if not ended:
        raise _BrokenAnswerError("its answer broke off")
    return Answer("".join(pieces), tokens)


def _tokens(reply: ChatCompletion | ChatCompletionChunk) -> tuple[int, int] | None:
    asked, said = (getattr(reply.usage, f"{part}_tokens", None) for part in ("prompt", "completion"))
    counted = all(isinstance(number, int) and 0 <= number < 10**9 for number in (asked, said))
    return (asked, said) if counted else None  # type: ignore[return-value]  # they are numbers


def _one_line(said: object) -> str:
    text = printable(" ".join(str(said)[:2000].split()))
    return text if len(text) <= 200 else text[:197] + "..."
