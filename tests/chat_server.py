"""A chat server on this machine that answers, streams, limits, fails and lies as a test tells it."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

KEY = "sk-test-0123456789-secret"


class ChatServer:
    """``plan(number, request) -> reply`` decides; the number counts from 0, a reply is made by the functions below."""

    def __init__(self) -> None:
        self.requests: list[dict[str, Any]] = []
        self.busy = self.busiest = 0
        self.plan: Callable[[int, dict[str, Any]], Any] = lambda number, request: said(f"a crack {number} in the nut")
        self.lock = threading.Lock()
        server = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                request = {**body, "path": self.path, "key": self.headers["Authorization"]}
                with server.lock:
                    number = len(server.requests)
                    server.requests.append(request)
                    server.busy += 1
                    server.busiest = max(server.busy, server.busiest)
                try:
                    status, headers, content = server.plan(number, request)
                finally:
                    with server.lock:
                        server.busy -= 1
                self.send_response(status)
                for name, value in headers.items():
                    self.send_header(name, value)
                self.send_header("Content-Length", str(len(content)))
                self.end_headers()
                self.wfile.write(content)

            def log_message(self, *arguments: object) -> None:
                pass

        self.http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.http.server_port}/v1"
        self.host = f"127.0.0.1:{self.http.server_port}"
        threading.Thread(target=self.http.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()

    @property
    def questions(self) -> list[str]:
        """Text of each request, in the order of arrival."""
        contents = [request["messages"][0]["content"] for request in self.requests]
        return [content if isinstance(content, str) else content[0]["text"] for content in contents]


def said(text: Any, tokens: tuple[int, int] | None = (10, 5)) -> tuple[int, dict[str, str], bytes]:
    usage = {} if tokens is None else {"usage": {"prompt_tokens": tokens[0], "completion_tokens": tokens[1]}}
    reply = {"choices": [{"message": {"role": "assistant", "content": text}, "finish_reason": "stop"}], **usage}
    return 200, {"Content-Type": "application/json"}, json.dumps(reply).encode()


def streamed(*lines: str) -> tuple[int, dict[str, str], bytes]:
    return 200, {"Content-Type": "text/event-stream"}, "".join(f"data: {line}\n\n" for line in lines).encode()


def piece(text: str | None, **other: Any) -> str:
    return json.dumps({"choices": [{"delta": {"content": text}, **other}]})


def failed(status: int, message: str = "no", **headers: str) -> tuple[int, dict[str, str], bytes]:
    """Let the client try again after a millisecond, unless a header asks for another pause."""
    headers = headers or {"Retry_After_Ms": "1"}
    headers = {name.replace("_", "-"): value for name, value in headers.items()}
    return status, {"Content-Type": "application/json", **headers}, json.dumps({"error": {"message": message}}).encode()
