"""A local HTTP server that speaks as an OpenAI-compatible endpoint does."""

import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


def completion(text: str | None, **message: Any) -> dict[str, Any]:
    reply = {"role": "assistant", "content": text, **message}
    return {"choices": [{"index": 0, "finish_reason": "stop", "message": reply}]}


class Endpoint:
    """Answers with `replies` in turn: (status, JSON body or raw text), then keeps silent."""

    def __init__(self) -> None:
        self.replies: list[tuple[int, Any]] = []
        self.questions: list[str] = []
        self.requests: list[dict[str, Any]] = []
        self.closing = threading.Event()
        endpoint = self

        class Handler(BaseHTTPRequestHandler):
            def log_message(self, *_: Any) -> None:
                pass

            def do_POST(self) -> None:
                request = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                key = self.headers["Authorization"]
                endpoint.requests.append({"path": self.path, "key": key, "model": request["model"]})
                endpoint.questions.append(request["messages"][0]["content"])
                if not endpoint.replies:
                    endpoint.closing.wait()
                    return
                status, body = endpoint.replies.pop(0)
                data = (body if isinstance(body, str) else json.dumps(body)).encode()
                self.send_response(status)
                web_page = isinstance(body, str) and body.startswith("<")
                self.send_header("Content-Type", "text/html" if web_page else "application/json")
                self.send_header("Content-Length", str(len(data)))
                self.end_headers()
                self.wfile.write(data)

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}/v1"
