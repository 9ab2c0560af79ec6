"""What is sent to a server, and what becomes of its answers."""

import threading
import time
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime

import pytest
from support.scripted_server import ScriptedServer, no_fault

from isthmus.data.synthetic.budget import prompt_estimate
from isthmus.data.synthetic.config import Api, GeneratorConfig, GeneratorKind
from isthmus.data.synthetic.generators.build import build_generator, check_generator
from isthmus.data.synthetic.generators.http import HttpGenerator, _asked_wait
from isthmus.data.synthetic.generators.pacing import Pace
from isthmus.data.synthetic.protocols import Completion, Item, Prompt, Request, Unanswerable
from isthmus.errors import UserError

REQUEST = Request(
    "00ff" + "0" * 12,
    Item("1", "t", {}),
    Prompt((("system", "be brief"), ("user", "2+2?"))),
    77,
    50,
    0.5,
    0.9,
    ("\n\n",),
)


def generator(server: ScriptedServer, secret: str | None = None, **more: object) -> HttpGenerator:
    values = {"kind": GeneratorKind.http, "url": server.url, "model": "m", "longest_wait_seconds": 0.01, **more}
    return HttpGenerator(GeneratorConfig(**values), secret)  # type: ignore[arg-type]


def test_a_chat_request_carries_everything() -> None:
    with ScriptedServer(lambda messages: "4") as server:
        (answer,) = generator(server).complete([REQUEST])
        (body,) = server.bodies
    assert (answer.text, answer.finish) == ("4", "stop")
    assert (answer.prompt_tokens, answer.completion_tokens) == (3, 1), "as the server counted"
    assert body == {
        "model": "m",
        "messages": [{"role": "system", "content": "be brief"}, {"role": "user", "content": "2+2?"}],
        "max_tokens": 50,
        "temperature": 0.5,
        "top_p": 0.9,
        "seed": 77,
        "stop": ["\n\n"],
    }


def test_completions_get_the_messages_as_one_text() -> None:
    with ScriptedServer(lambda messages: " 4") as server:
        (answer,) = generator(server, api=Api.completions).complete([replace(REQUEST, stop=())])
        (body,) = server.bodies
    assert answer.text == " 4"
    assert body["prompt"] == "be brief\n\n2+2?\n\n"
    assert "stop" not in body


@pytest.mark.parametrize("fault", ["500", "502", "503", "429", "408", "malformed", "cut", "no text", "wrong type"])
def test_what_may_pass_is_asked_again(fault: str) -> None:
    with ScriptedServer(lambda messages: "4", lambda key, attempt: fault if attempt < 3 else "") as server:
        (answer,) = generator(server).complete([REQUEST])
        assert answer.text == "4"
        assert server.attempts == {REQUEST.key: 3}


def test_an_answer_without_text_is_paid_for() -> None:
    with ScriptedServer(lambda messages: "4", lambda key, attempt: "null length") as server:
        (answer,) = generator(server).complete([REQUEST])
        assert server.attempts == {REQUEST.key: 1}
    assert (answer.text, answer.prompt_tokens, answer.completion_tokens, answer.finish) == ("", 3, 1, "length")
    with ScriptedServer(lambda messages: "4", lambda key, attempt: "null stop" if attempt < 3 else "") as server:
        (answer,) = generator(server).complete([REQUEST])
    assert (answer.text, answer.prompt_tokens, answer.completion_tokens) == ("4", 9, 3), "all three were counted"
    with (
        ScriptedServer(lambda messages: "4", lambda key, attempt: "null stop") as server,
        pytest.raises(Unanswerable, match="an answer without text") as caught,
    ):
        generator(server, attempts=2).complete([REQUEST])
    assert caught.value.tokens == (6, 2)
    with (
        ScriptedServer(lambda messages: "4", lambda key, attempt: "null content_filter") as server,
        pytest.raises(Unanswerable, match="filtered") as caught,
    ):
        generator(server).complete([REQUEST])
    assert caught.value.tokens == (3, 1)


def test_counts_of_null_are_absent_and_halves_of_characters_replaced() -> None:
    class Response:
        status_code = 200

        def json(self) -> object:
            usage = {"prompt_tokens": None, "completion_tokens": 5}
            return {"choices": [{"message": {"content": "a\ud800b\U0001f600"}}], "usage": usage}

    with ScriptedServer(lambda messages: "4") as server:
        answer = generator(server)._read(Response(), REQUEST, (0, 0))
    assert isinstance(answer, Completion)
    assert answer.text == "a\ufffdb\U0001f600"
    assert (answer.prompt_tokens, answer.completion_tokens) == (prompt_estimate(REQUEST), 5)


def test_it_gives_up_after_so_many_attempts_and_says_why() -> None:
    with (
        ScriptedServer(lambda messages: "4", lambda key, attempt: "500") as server,
        pytest.raises(UserError, match="no answer after 4 attempts, the last: status 500") as caught,
    ):
        generator(server, attempts=4).complete([REQUEST])
    assert server.attempts == {REQUEST.key: 4}
    assert "\n" not in str(caught.value)
    with pytest.raises(UserError, match="ConnectError"):  # the server is gone
        generator(server, attempts=2).complete([REQUEST])


@pytest.mark.parametrize("status", ["400", "413", "422"])
def test_a_refused_request_is_not_asked_again(status: str) -> None:
    with (
        ScriptedServer(lambda messages: "4", lambda key, attempt: status) as server,
        pytest.raises(Unanswerable, match=f"status {status}: scripted"),
    ):
        generator(server).complete([REQUEST])
    assert server.attempts == {REQUEST.key: 1}


@pytest.mark.parametrize(("status", "fix"), [("401", "key_variable"), ("404", "check url and model"), ("402", "pay")])
def test_what_the_user_must_see_to_ends_it_at_once(status: str, fix: str) -> None:
    with (
        ScriptedServer(lambda messages: "4", lambda key, attempt: status) as server,
        pytest.raises(UserError, match=fix),
    ):
        generator(server).complete([REQUEST])
    assert server.attempts == {REQUEST.key: 1}


def test_a_servers_wish_to_wait_is_kept_in_seconds_and_as_a_date() -> None:
    class Response:
        def __init__(self, value: str) -> None:
            self.headers = {"Retry-After": value} if value else {}

    assert _asked_wait(Response("2.5")) == 2.5
    assert _asked_wait(Response("")) is None
    assert _asked_wait(Response("soon")) is None
    later = format_datetime(datetime.now(UTC) + timedelta(seconds=30), usegmt=True)
    assert 25 < (_asked_wait(Response(later)) or 0) <= 30
    assert _asked_wait(Response(format_datetime(datetime.now(UTC) - timedelta(hours=1), usegmt=True))) == 0.0
    with ScriptedServer(lambda messages: "4", lambda key, attempt: "429" if attempt == 1 else "") as server:
        begun = time.monotonic()
        generator(server, longest_wait_seconds=60.0).complete([REQUEST])
        assert time.monotonic() - begun >= 0.05, "the server's Retry-After, not our shorter back-off"


class Clock:
    """Time that passes only when somebody waits."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now

    def is_set(self) -> bool:
        return False

    def wait(self, seconds: float) -> bool:
        self.now += seconds
        return False


@pytest.mark.parametrize(
    ("requests", "tokens", "asked", "seconds"),
    [
        (60, None, [10] * 61, 60.0),
        (None, 600, [100] * 7, 60.0),
        (60, 600, [5] * 11, 10.0),
        (None, None, [10**6] * 5, 0.0),
    ],
)
def test_rates_are_never_passed(requests: float | None, tokens: float | None, asked: list[int], seconds: float) -> None:
    clock = Clock()
    pace = Pace(requests, tokens, clock, clock)  # type: ignore[arg-type]
    for size in asked:
        pace.wait(size)
    assert clock.now - 100.0 == pytest.approx(seconds)


def test_a_pause_for_everyone_holds_the_others_back() -> None:
    clock = Clock()
    pace = Pace(None, None, clock, clock)  # type: ignore[arg-type]
    pace._next = 100.0
    pace.pause(0.0, everyone=True)
    clock.now = 100.0
    with pace._lock:
        pace._next = 107.0
    pace.wait(1)
    assert clock.now == 107.0


def test_a_pause_for_everyone_holds_those_in_the_row_back_too() -> None:
    class Meanwhile(Clock):
        """Another thread's request is told to wait while this one stands in the row."""

        def wait(self, seconds: float) -> bool:
            if self.now == 100.0:
                self.now += 0.5
                pace._held_until = pace._next = 130.0
                seconds -= 0.5
            return super().wait(seconds)

    clock = Meanwhile()
    pace = Pace(60, None, clock, clock)  # type: ignore[arg-type]
    pace.wait(1)
    pace.wait(1)
    assert clock.now == 130.0
    pace.wait(1)
    assert clock.now == 131.0, "the rate holds after it"


def test_nothing_is_sent_once_stopped() -> None:
    with ScriptedServer(lambda messages: "4") as server:
        found = generator(server, requests_per_minute=0.1)
        found._pace.wait(1)
        threading.Timer(0.05, found.stop).start()
        with pytest.raises(UserError, match="stopped"):
            found.complete([REQUEST])
        assert not server.attempts


def test_stop_ends_waits() -> None:
    with ScriptedServer(lambda messages: "4", lambda key, attempt: "500") as server:
        found = generator(server, longest_wait_seconds=60.0, attempts=20)
        errors: list[BaseException] = []

        def ask() -> None:
            try:
                found.complete([REQUEST])
            except UserError as error:
                errors.append(error)

        thread = threading.Thread(target=ask)
        thread.start()
        while not server.attempts:
            time.sleep(0.01)
        found.stop()
        thread.join(30)
    assert not thread.is_alive()
    assert errors


REFUSED: dict[str, tuple[dict[str, object], str]] = {
    "no url": ({"kind": GeneratorKind.http, "model": "m"}, "x.url: is not given"),
    "no model": ({"kind": GeneratorKind.http, "url": "http://a"}, "x.model: is not given"),
    "odd url": ({"kind": GeneratorKind.http, "url": "a:1", "model": "m"}, "x.url: is 'a:1'"),
    "of another kind": ({"model": "m"}, "x.model: is of kind: http"),
    "path": (
        {"kind": GeneratorKind.http, "url": "http://a", "model": "m", "path": "p"},
        "x.path: is of kind: checkpoint",
    ),
    "no path": ({"kind": GeneratorKind.checkpoint}, "x.path: is not given"),
    "same": ({"kind": GeneratorKind.same}, "which is for judges"),
    "parallel": ({"kind": GeneratorKind.http, "url": "http://a", "model": "m", "parallel": 0}, "x.parallel: is 0"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_settings_that_would_be_ignored_are_refused(case: str) -> None:
    values, message = REFUSED[case]
    with pytest.raises(UserError, match=message):
        check_generator(GeneratorConfig(**values), "x", judge=False)  # type: ignore[arg-type]


def test_a_key_comes_from_the_named_variable() -> None:
    config = GeneratorConfig(kind=GeneratorKind.http, url="http://a/v1", model="m", key_variable="SECRET")
    build: Callable[[dict[str, str]], object] = lambda secrets: build_generator(  # noqa: E731
        config,
        None,
        where="x",
        secrets=secrets,
        open_sampler=None,  # type: ignore[arg-type]
    )
    with pytest.raises(UserError, match="the environment has no SECRET"):
        build({})
    made = build({"SECRET": "abc"})
    assert made._client.headers["Authorization"] == "Bearer abc"  # type: ignore[attr-defined]
    assert no_fault("", 1) == ""
