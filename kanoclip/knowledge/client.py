"""One client of the chat API that OpenAI, Ollama, vLLM and llama.cpp share: questions in, texts out."""

from __future__ import annotations

import json
import os
import threading
from collections.abc import Iterator
from email.utils import parsedate_to_datetime
from time import time
from typing import Any, NamedTuple
from urllib.parse import urlsplit

OPENAI = "https://api.openai.com/v1"
PATIENCE = 300.0  # seconds a server may ask to wait; beyond that it is better to come back later
FIRST_WAIT, LONGEST_WAIT = 1.0, 60.0
AGAIN = (408, 409, 429)  # and all from 500 on


class ChatError(Exception):
    """The server cannot be used at all: every other question would fail the same way. One line for people."""


class QuestionError(Exception):
    """This one question has no answer; others may have."""


class RefusedError(QuestionError):
    """The server is well, but does not want this question."""


class _TryAgain(Exception):
    """A passing trouble, and how many seconds the server asks to wait."""

    def __init__(self, why: str, wait: float | None = None) -> None:
        super().__init__(why)
        self.wait = wait


class Answer(NamedTuple):
    """What a model said.

    Attributes:
        text: As it was sent.
        tokens: Of question and answer, as the server counts them; None where it does not tell.
    """

    text: str
    tokens: tuple[int, int] | None


class ChatClient:
    """Ask questions, with or without an image; may be used by several threads at once.

    The key is sent to the server and goes nowhere else: it is cut out of every answer and message that has it.

    Args:
        base_url: Address up to and with ``/v1``. Null: the environment's OPENAI_BASE_URL, else OpenAI's.
        key: Null: the environment's OPENAI_API_KEY. A server of your own may need none.
        retries: How often a question is asked again that the server could not answer just now.
        timeout: Seconds to wait for an answer to begin, and between two pieces of one.
        stream: Ask for the answer in pieces, which keeps slow servers behind a proxy alive. Either kind is read.

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
        if not key and urlsplit(url).hostname == urlsplit(OPENAI).hostname:
            raise ChatError(
                f"No key for {self.host}: set the environment variable OPENAI_API_KEY. A server of your own needs "
                f"none: --base_url http://localhost:11434/v1"
            )
        if not key.isascii() or not key.isprintable() or key != key.strip():
            raise ChatError("The key is not one line of plain characters. Set the environment variable OPENAI_API_KEY.")
        self.retries = retries
        self.stream = stream
        self._key = key
        self._reached = False
        self._stopped = threading.Event()
        # Its own retries do not know when to give up, and end before the pieces of a streamed answer are read.
        self._api = OpenAI(base_url=url, api_key=key or "none", max_retries=0, timeout=timeout)

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
        """
        content: Any = question
        if image is not None:
            content = [{"type": "text", "text": question}, {"type": "image_url", "image_url": {"url": image}}]
        wait = FIRST_WAIT
        for attempt in range(self.retries + 1):
            try:
                return self._once(model, content)
            except _TryAgain as trouble:
                why = _line(self.hide(str(trouble)))  # in this order: half a key is not found
                if attempt == self.retries:
                    break
                pause = wait if trouble.wait is None else trouble.wait
                if pause > PATIENCE:
                    raise ChatError(
                        f"{self.host} asks to wait {pause:.0f} seconds ({why}). Run the same command later: what is "
                        f"answered is kept."
                    ) from None
                if self._wait(pause):
                    raise ChatError("Stopped.") from None
                wait = min(2 * wait, LONGEST_WAIT)
        raise QuestionError(f"{self.host} failed {self.retries + 1} times, last: {why}")

    @property
    def stopped(self) -> bool:
        """Whether no more may be asked."""
        return self._stopped.is_set()

    def stop(self) -> None:
        """Let no more be asked, and wake whoever waits to ask again; answers on their way still arrive."""
        self._stopped.set()

    def hide(self, text: str) -> str:
        """Cut the key out of a text."""
        return cut_out(text, self._key)

    def _wait(self, seconds: float) -> bool:
        return self._stopped.wait(seconds)

    def _once(self, model: str, content: Any) -> Answer:
        import httpx2
        import openai

        if self.stopped:
            raise ChatError("Stopped.")
        options: dict[str, Any] = {"stream": True, "stream_options": {"include_usage": True}} if self.stream else {}
        chat = self._api.chat.completions.with_streaming_response  # reads nothing yet: the server says which kind it is
        try:
            with chat.create(model=model, messages=[{"role": "user", "content": content}], **options) as response:
                self._reached = True
                if "event-stream" in response.headers.get("content-type", ""):
                    answer = _joined(response.iter_lines())
                else:
                    answer = _whole(response.read())
        except openai.APIStatusError as error:
            raise self._status(model, error) from None
        except openai.APITimeoutError:
            raise _TryAgain("it did not answer in time") from None
        except (openai.APIConnectionError, httpx2.HTTPError) as error:
            if not self._reached and isinstance(error, openai.APIConnectionError):
                raise ChatError(
                    f"No server answers at {self.host} ({_line(error.__cause__ or error)}). Start it, or set "
                    f"--base_url."
                ) from None
            raise _TryAgain(f"the connection broke ({type(error).__name__})") from None
        return answer._replace(text=self.hide(answer.text))

    def _status(self, model: str, error: Any) -> Exception:
        code, said = error.status_code, _line(self.hide(_message(error)))
        self._reached = True
        if code in (401, 403):
            return ChatError(f"{self.host} refuses the key: {said}. Set the environment variable OPENAI_API_KEY.")
        if code == 404:
            return ChatError(f"{self.host} knows no model {model!r}, or is not a chat server: {said}. Set --model, "
                             f"--vqa_model or --base_url.")  # fmt: skip
        if code == 402 or getattr(error, "code", None) == "insufficient_quota":
            return ChatError(f"{self.host} wants to be paid: {said}")
        if code in AGAIN or code >= 500:
            return _TryAgain(f"{code} {said}", _retry_after(error.response.headers.get("retry-after")))
        return RefusedError(f"{self.host} refuses the question: {code} {said}")


def cut_out(text: str, *keys: str) -> str:
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


def _whole(body: bytes) -> Answer:
    try:
        reply = json.loads(body)
        text = reply["choices"][0]["message"]["content"]
    except (ValueError, LookupError, TypeError):
        raise _TryAgain("its answer is not one of the chat API") from None
    return Answer(text if isinstance(text, str) else "", _tokens(reply))


def _joined(lines: Iterator[str]) -> Answer:
    """Put the pieces of a streamed answer together."""
    pieces: list[str] = []
    tokens, ended = None, False
    for line in lines:
        field, _, data = line.partition(":")
        if field != "data" or not data.strip():
            continue
        if data.strip() == "[DONE]":
            ended = True
            break
        try:
            part = json.loads(data)
            if part.get("error"):
                raise _TryAgain(f"it broke off: {part['error']}")
            for choice in part.get("choices") or []:
                piece = (choice.get("delta") or {}).get("content")
                pieces.append(piece if isinstance(piece, str) else "")
                ended = ended or bool(choice.get("finish_reason"))
        except (ValueError, LookupError, TypeError, AttributeError):
            raise _TryAgain("a piece of its answer is not one of the chat API") from None
        tokens = _tokens(part) or tokens
    if not ended:
        raise _TryAgain("its answer broke off")
    return Answer("".join(pieces), tokens)


def _tokens(reply: Any) -> tuple[int, int] | None:
    usage = reply.get("usage") if isinstance(reply, dict) else None
    if not isinstance(usage, dict):
        return None
    spent, said = usage.get("prompt_tokens"), usage.get("completion_tokens")
    return (spent, said) if isinstance(spent, int) and isinstance(said, int) else None


def _message(error: Any) -> str:
    body = error.body
    said = body.get("message") or body.get("error") if isinstance(body, dict) else body
    return str(said or f"status {error.status_code}").rstrip(". \n")


def _line(said: object) -> str:
    text = " ".join(str(said).split())
    return text if len(text) <= 200 else text[:197] + "..."


def _retry_after(value: str | None) -> float | None:
    """Read the header Retry-After: seconds, or a date."""
    if not value:
        return None
    try:
        return max(0.0, float(value))
    except ValueError:
        pass
    try:
        return max(0.0, parsedate_to_datetime(value).timestamp() - time())
    except ValueError:
        return None
