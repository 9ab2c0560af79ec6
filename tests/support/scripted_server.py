"""An OpenAI-compatible server on loopback that follows a script: what it answers, and how it fails before."""

import json
import threading
import time
from collections import Counter
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

Messages = tuple[tuple[str, str], ...]


def no_fault(key: str, attempt: int) -> str:
    return ""


def many_faults(key: str, attempt: int) -> str:
    """Fail the first attempts at about half of the requests, each in a way that follows from its key."""
    kinds = ["500", "429", "slow", "malformed", "cut", "no text", "503", "wrong type"]
    number = int(key[:4], 16) % 16
    return kinds[number] if number < len(kinds) and attempt <= 1 + number % 2 else ""


class ScriptedServer:
    """Serves on a free port while used as a context.

    Args:
        answer: from messages to the text of the answer.
        fault: from a request's key and its attempt (from 1) to a fault's name, or "".
        on_request: called with the number of requests so far, before each is looked at.
    """

    def __init__(
        self,
        answer: Callable[[Messages], str],
        fault: Callable[[str, int], str] = no_fault,
        on_request: Callable[[int], None] = lambda number: None,
    ) -> None:
        self._answer, self._fault, self._on_request = answer, fault, on_request
        self._lock = threading.Lock()
        self.attempts: Counter[str] = Counter()
        self.answered: Counter[str] = Counter()
        self.faults: Counter[str] = Counter()
        self.bodies: list[dict[str, Any]] = []
        self.most_at_once = self._at_once = 0

    def __enter__(self) -> "ScriptedServer":
        script = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_POST(self) -> None:
                script._serve(self)

            def log_message(self, format: str, *args: object) -> None:
                pass

        class Server(ThreadingHTTPServer):
            daemon_threads = True

            def handle_error(self, request: Any, client_address: Any) -> None:
                pass  # a client that was killed

        self._server = Server(("127.0.0.1", 0), Handler)
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._server.server_address[1]}/v1"

    def _serve(self, handler: BaseHTTPRequestHandler) -> None:
        body = json.loads(handler.rfile.read(int(handler.headers["Content-Length"])))
        key = handler.headers["Idempotency-Key"]
        with self._lock:
            self.attempts[key] += 1
            attempt = self.attempts[key]
            self.bodies.append(body)
            number = len(self.bodies)
            self._at_once += 1
            self.most_at_once = max(self.most_at_once, self._at_once)
        try:
            self._on_request(number)
            fault = self._fault(key, attempt)
            with self._lock:
                self.faults[fault] += 1
            self._reply(handler, body, key, fault)
        finally:
            with self._lock:
                self._at_once -= 1

    def _reply(self, handler: BaseHTTPRequestHandler, body: dict[str, Any], key: str, fault: str) -> None:
        messages = body.get("messages") or [{"role": "user", "content": body.get("prompt")}]
        text = self._answer(tuple((entry["role"], entry["content"]) for entry in messages))
        choice: dict[str, Any] = {"index": 0, "finish_reason": "stop"}
        choice |= {"text": text} if "prompt" in body else {"message": {"role": "assistant", "content": text}}
        usage = {
            "prompt_tokens": sum(len(entry["content"]) for entry in messages) // 4,
            "completion_tokens": len(text) // 4 + 1,
        }
        content = json.dumps({"choices": [choice], "usage": usage}).encode()
        status, headers = 200, {}
        if fault == "slow":
            time.sleep(0.2)
        elif fault == "malformed":
            content = content[: len(content) // 2]
        elif fault == "no text":
            content = b'{"choices": []}'
        elif fault.startswith("null"):  # and how it ended
            choice |= {"message": {"role": "assistant", "content": None}, "finish_reason": fault.removeprefix("null ")}
            content = json.dumps({"choices": [choice], "usage": usage}).encode()
        elif fault == "wrong type":
            content = b'{"choices": [{"message": {"content": 5}}]}'
        elif fault == "cut":
            handler.send_response(200)
            handler.send_header("Content-Length", str(len(content)))
            handler.end_headers()
            handler.wfile.write(content[:20])
            handler.close_connection = True
            return
        elif fault:
            status = int(fault)
            content = json.dumps({"error": {"message": f"scripted {fault}"}}).encode()
            headers = {"Retry-After": "0.05"} if fault == "429" else {}
        handler.send_response(status)
        for name, value in {**headers, "Content-Length": str(len(content)), "Content-Type": "application/json"}.items():
            handler.send_header(name, value)
        handler.end_headers()
        handler.wfile.write(content)
        handler.wfile.flush()
        if fault in ("", "slow"):
            with self._lock:
                self.answered[key] += 1
