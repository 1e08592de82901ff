"""A judge's server that does as it is told, well or badly."""

from __future__ import annotations

import http.server
import json
import re
import threading
import time
from collections.abc import Callable
from typing import Any

PLACES = re.compile(r"<(?:reply|summary)_a>\n(.*)\n</(?:reply|summary)_a>.*<(?:reply|summary)_b>\n(.*)\n</", re.DOTALL)

Action = tuple[Any, ...] | str
Script = Callable[[int, str], Action]


class ScriptedServer:
    """`script(number, question)` says what request `number` gets.

    A text is a reply; ("status", code, body, headers), ("hang", seconds), ("raw", bytes) and ("drop",) are the rest.
    """

    def __init__(self, script: Script) -> None:
        self.script = script
        self.bodies: list[dict[str, Any]] = []
        self.headers: list[dict[str, str]] = []
        self._lock = threading.Lock()
        scripted = self

        class Handler(http.server.BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def log_message(self, *_: Any) -> None:
                pass

            def do_GET(self) -> None:
                self.send(200, {"object": "list", "data": []})

            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["content-length"])))
                with scripted._lock:
                    number = len(scripted.bodies)
                    scripted.bodies.append(body)
                    scripted.headers.append({name.lower(): value for name, value in self.headers.items()})
                action = scripted.script(number, body["messages"][0]["content"])
                if isinstance(action, str):
                    choice = {"message": {"role": "assistant", "content": action}, "finish_reason": "stop"}
                    self.send(200, {"choices": [choice]})
                elif action[0] == "status":
                    self.send(action[1], action[2] if len(action) > 2 else {}, action[3] if len(action) > 3 else {})
                elif action[0] == "hang":
                    time.sleep(action[1])
                    self.close_connection = True
                elif action[0] == "raw":
                    self.send(200, action[1])
                else:
                    self.close_connection = True

            def send(self, status: int, content: Any, headers: dict[str, str] | None = None) -> None:
                data = content if isinstance(content, bytes) else json.dumps(content).encode()
                self.send_response(status)
                for name, value in {"content-type": "application/json", **(headers or {})}.items():
                    self.send_header(name, value)
                self.send_header("content-length", str(len(data)))
                self.end_headers()
                self.wfile.write(data)

        class Server(http.server.ThreadingHTTPServer):
            def handle_error(self, *_: Any) -> None:
                """A client that went away is no news."""

        self._server = Server(("127.0.0.1", 0), Handler)
        threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._server.server_port}/v1"

    @property
    def questions(self) -> list[str]:
        return [body["messages"][0]["content"] for body in self.bodies]

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()


def shown(question: str) -> tuple[str, str]:
    """The responses that a question shows as A and as B."""
    found = PLACES.search(question)
    assert found, question
    return found.group(1), found.group(2)
