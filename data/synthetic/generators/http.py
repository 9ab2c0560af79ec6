"""An OpenAI-compatible server: one request at a time on each thread, sent again after what may pass."""

import random
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Any

from isthmus.data.extras import need
from isthmus.data.synthetic.budget import prompt_estimate
from isthmus.data.synthetic.config import Api, GeneratorConfig
from isthmus.data.synthetic.generators.pacing import Pace
from isthmus.data.synthetic.protocols import Completion, Request, Unanswerable, digest
from isthmus.errors import UserError

_FIRST_WAIT_SECONDS = 0.5
_CONNECT_SECONDS = 10.0
_USERS_FAULT = {
    401: "give the API key: key_variable",
    402: "pay the provider",
    403: "check the API key's rights",
    404: "check url and model",
    405: "check url",
}
# 408, 409, 425 and 429 pass; every other answer of the fours is about the request itself.
_PASSING = {408, 409, 425, 429}


@dataclass(frozen=True, slots=True)
class _Silent:
    """An answer without a text, such as a refusal; `tokens` of prompts and answers so far."""

    tokens: tuple[int, int]

    def __str__(self) -> str:
        return "an answer without text"


class HttpGenerator:
    """Asks a server for chat or text completions.

    Args:
        secret: the API key, or None.
        clock: monotonic seconds.
    """

    batch = 1

    def __init__(
        self, config: GeneratorConfig, secret: str | None, *, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._config, self._httpx = config, need("httpx", "'isthmus[synthetic]'")
        self.name = f"{config.model} ({config.api.name})"
        self.fingerprint = digest(["http", config.model, config.revision, config.api.name])
        self.parallel = config.parallel
        self._stopped = threading.Event()
        self._pace = Pace(config.requests_per_minute, config.tokens_per_minute, clock, self._stopped)
        headers = {"Authorization": f"Bearer {secret}"} if secret else {}
        self._client: Any = self._httpx.Client(
            base_url=str(config.url).rstrip("/"),
            headers=headers,
            timeout=self._httpx.Timeout(config.timeout_seconds, connect=_CONNECT_SECONDS),
            limits=self._httpx.Limits(max_connections=config.parallel, max_keepalive_connections=config.parallel),
        )

    def complete(self, requests: Sequence[Request]) -> list[Completion]:
        """Answer one request.

        Raises:
            Unanswerable: the server refuses this request.
            UserError: the server refuses every request, or gave no answer however often it was asked.
        """
        (request,) = requests
        path, call = self._call(request)
        reason, silent, paid = "", False, (0, 0)
        for attempt in range(self._config.attempts):
            self._pace.wait(prompt_estimate(request) + request.max_tokens)
            if self._stopped.is_set():
                break
            silent = False
            try:
                response = self._client.post(path, **call)
            except (self._httpx.TransportError, self._httpx.DecodingError) as error:
                reason, asked = f"{type(error).__name__}: {error}".rstrip(": "), None
            else:
                answer = self._read(response, request, paid)
                if isinstance(answer, Completion):
                    return [answer]
                if isinstance(answer, _Silent):
                    silent, paid = True, answer.tokens
                reason, asked = str(answer), _asked_wait(response)
            if attempt + 1 < self._config.attempts:
                self._pace.pause(self._back_off(attempt, asked), everyone=asked is not None)
        if silent and not self._stopped.is_set():
            raise Unanswerable(reason, paid)
        raise UserError(
            f"no answer after {self._config.attempts} attempts, the last: {reason or 'stopped'}",
            where=f"{self._config.url}",
            fix="see to the server and run the same command again; nothing that was answered is asked again",
        )

    def stop(self) -> None:
        self._stopped.set()

    def close(self) -> None:
        self._client.close()

    def _call(self, request: Request) -> tuple[str, dict[str, Any]]:
        body: dict[str, Any] = {
            "model": self._config.model,
            "max_tokens": request.max_tokens,
            "temperature": request.temperature,
            "top_p": request.top_p,
            "seed": request.seed,
        }
        if request.stop:
            body["stop"] = list(request.stop)
        if self._config.api is Api.chat:
            body["messages"] = [{"role": role, "content": text} for role, text in request.prompt.messages]
        else:
            body["prompt"] = request.prompt.plain
        path = "/chat/completions" if self._config.api is Api.chat else "/completions"
        # Servers that know the header answer a request that was cut off in mid-answer without doing the work again.
        return path, {"json": body, "headers": {"Idempotency-Key": request.key}}

    def _read(self, response: Any, request: Request, paid: tuple[int, int]) -> "Completion | _Silent | str":
        """Return the completion, or what is wrong with an answer that may be right the next time.

        Args:
            paid: tokens of the prompts and answers before this one, which are added to it.

        Raises:
            Unanswerable, UserError: as `complete`.
        """
        status = int(response.status_code)
        if status in _USERS_FAULT:
            raise UserError(
                f"the server answers {status}: {_message(response)}",
                where=f"{self._config.url}",
                fix=_USERS_FAULT[status],
            )
        if status >= 500 or status in _PASSING:
            return f"status {status}"
        if status >= 400:
            raise Unanswerable(f"status {status}: {_message(response)}")
        if status != 200:
            return f"status {status}"
        try:
            content = response.json()
            choice = content["choices"][0]
            text = choice["message"]["content"] if self._config.api is Api.chat else choice["text"]
            finish = choice.get("finish_reason") or "stop"
            usage = content.get("usage") or {}
            named = (usage.get("prompt_tokens"), usage.get("completion_tokens"))
            counted = [-1 if count is None else int(count) for count in named]
        except (ValueError, LookupError, TypeError, AttributeError) as error:
            return f"malformed answer ({type(error).__name__})"
        if text is not None and not isinstance(text, str):
            return "malformed answer (no text)"
        estimates = [prompt_estimate(request), len(text) // 4 + 1 if text else 0]
        prompt, completion = (
            before + (count if count >= 0 else guess)
            for before, count, guess in zip(paid, counted, estimates, strict=True)
        )
        if finish == "content_filter":
            raise Unanswerable("filtered by the server", (prompt, completion))
        if text is None and finish != "length":
            return _Silent((prompt, completion))
        # Half of a surrogate pair is no character, and could be neither hashed nor trained on.
        text = (text or "").encode("utf-16", "surrogatepass").decode("utf-16", "replace")
        return Completion(text, prompt, completion, "length" if finish == "length" else "stop")

    def _back_off(self, attempt: int, asked: float | None) -> float:
        """Return the seconds to wait: what the server asked for, or twice as long each time with some chance in it."""
        longest = self._config.longest_wait_seconds
        if asked is not None:
            return min(asked, longest)
        return min(_FIRST_WAIT_SECONDS * 2**attempt * random.uniform(0.75, 1.25), longest)


def _asked_wait(response: Any) -> float | None:
    """Return the seconds of a Retry-After header, which may be a date (RFC 9110, 10.2.3)."""
    value = response.headers.get("Retry-After", "").strip()
    try:
        return max(0.0, float(value))
    except ValueError:
        pass
    try:
        return max(0.0, (parsedate_to_datetime(value) - datetime.now(UTC)).total_seconds())
    except (TypeError, ValueError):
        return None


def _message(response: Any) -> str:
    try:
        error = response.json()["error"]
        return str(error["message"] if isinstance(error, dict) else error)[:200]
    except (ValueError, LookupError, TypeError):
        return " ".join(response.text.split())[:200]
