import pytest
from chat_server import ChatServer

from kanoclip.knowledge.client import ChatClient


@pytest.fixture
def server(monkeypatch):
    for name in ("OPENAI_API_KEY", "OPENAI_BASE_URL", "HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy"):
        monkeypatch.delenv(name, raising=False)
    chat = ChatServer()
    yield chat
    chat.http.shutdown()
    chat.http.server_close()


@pytest.fixture
def waits(monkeypatch):
    """Seconds that a client would have waited, without waiting."""
    noted: list[float] = []

    def wait(client: ChatClient, seconds: float) -> bool:
        noted.append(seconds)
        return client.stopped

    monkeypatch.setattr(ChatClient, "_wait", wait)
    return noted
