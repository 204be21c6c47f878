import pytest
from chat_server import ChatServer


@pytest.fixture
def server(monkeypatch):
    for name in ("OPENAI_API_KEY", "OPENAI_BASE_URL", "HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy"):
        monkeypatch.delenv(name, raising=False)
    chat = ChatServer()
    yield chat
    chat.http.shutdown()
    chat.http.server_close()
