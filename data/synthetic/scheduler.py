"""Drives journeys: asks generators, runs verifiers, writes the journal; one thread decides, others wait for answers.

What an answer cost is on disk before the thread that got it sends another request, so that a kill can only repeat what
was under way.

Requests to a server leave as soon as they are known. Those to a generator that works in batches wait until nothing else
is under way; then one batch goes, of the items with the lowest numbers. So what stands in a batch follows from the
answers before it and not from time, and a run that was killed forms the same batches again.
"""

import itertools
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from queue import SimpleQueue
from typing import Any

from isthmus.data.synthetic.budget import Budget
from isthmus.data.synthetic.journal import Answer, Journal, Refused
from isthmus.data.synthetic.journey import Ask, Check, Journey
from isthmus.data.synthetic.protocols import Generator, Request, Unanswerable, Verdict
from isthmus.data.synthetic.sandbox.slot import SandboxFailed
from isthmus.errors import UserError


@dataclass(slots=True)
class _Open:
    """A journey under way, with the answers that it still lacks."""

    number: int
    journey: Journey
    ask: Ask | None = None
    answers: dict[str, Answer] = field(default_factory=dict)
    refused: bool = False  # the budget does not allow what it asks for; it stays open for a run with a larger one


@dataclass(frozen=True, slots=True)
class _Waiting:
    place: tuple[int, int]
    owner: _Open
    request: Request
    generator: str


class Scheduler:
    """Works on up to `window` items at a time.

    Args:
        generators: by the names that journeys use.
        checkers: threads that verify.
        on_outcome: called with (number, outcome) as items end, in no particular order.
    """

    def __init__(
        self,
        generators: Mapping[str, Generator],
        journal: Journal,
        budget: Budget,
        *,
        window: int,
        checkers: int,
        on_outcome: Callable[[int, dict[str, Any]], None],
    ) -> None:
        self._generators, self._journal, self._budget = generators, journal, budget
        self._window, self._on_outcome = window, on_outcome
        self._events: SimpleQueue[Callable[[], None]] = SimpleQueue()
        self._ready: deque[tuple[_Open, Any]] = deque()
        self._waiting: list[_Waiting] = []
        self._parked: list[_Waiting] = []  # the budget has no room for them while others are under way
        self._running = 0
        self._open = 0
        self._exhausted = False
        self._checkers = ThreadPoolExecutor(checkers, thread_name_prefix="verify")
        # One for each generator, of which judges may share one: `parallel` is what its server is asked at a time.
        self._senders = {
            id(generator): ThreadPoolExecutor(generator.parallel, thread_name_prefix="ask")
            for generator in generators.values()
            if generator.parallel
        }

    def run(self, journeys: Iterable[tuple[int, Journey]]) -> bool:
        """Bring all journeys to their end; return False if the budget ended some of them before it.

        Raises:
            UserError: a generator gave up. What was under way is answered and written down first.
        """
        coming = iter(journeys)
        try:
            while True:
                self._admit(coming)
                if self._running:
                    self._events.get()()
                    self._unpark()
                elif not self._unpark() and not self._send_batch():
                    break
        except BaseException:
            self._drain()
            raise
        finally:
            for pool in (self._checkers, *self._senders.values()):
                pool.shutdown(wait=False, cancel_futures=True)
        return not self._exhausted

    def _admit(self, coming: Iterator[tuple[int, Journey]]) -> None:
        """Advance what can be advanced, and begin items until the window is full."""
        while True:
            while self._ready:
                self._advance(*self._ready.popleft())
            if self._open >= self._window or self._exhausted:
                return
            for number, journey in itertools.islice(coming, self._window - self._open):
                self._open += 1
                self._ready.append((_Open(number, journey), None))
            if not self._ready:
                return

    def _advance(self, opened: _Open, value: Any) -> None:
        """Send a journey what it waited for, as long as the next thing is known already."""
        while True:
            try:
                step = opened.journey.send(value)
            except StopIteration as end:
                self._journal.outcome(opened.number, end.value)
                self._open -= 1
                self._on_outcome(opened.number, end.value)
                return
            value = self._check(opened, step) if isinstance(step, Check) else self._ask(opened, step)
            if value is None:
                return

    def _check(self, opened: _Open, check: Check) -> Verdict | None:
        known: Verdict | None = self._journal.known(opened.number, check.key)
        if known is not None:
            return known
        if getattr(check.verifier, "quick", False):
            verdict = _verdict(check)
            self._journal.verdict(opened.number, check.key, verdict)
            return verdict

        def done(future: Future[Verdict]) -> None:
            self._journal.verdict(opened.number, check.key, future.result())
            self._ready.append((opened, future.result()))

        self._start(self._checkers.submit(_verdict, check), done)
        return None

    def _ask(self, opened: _Open, ask: Ask) -> list[Answer] | None:
        opened.ask, opened.answers = ask, {}
        unknown = []
        for request in ask.requests:
            answer = self._journal.known(opened.number, request.key)
            if answer is None:
                unknown.append(request)
            else:
                opened.answers[request.key] = answer
        generator = self._generators[ask.generator]
        for place, request in enumerate(unknown):
            waiting = _Waiting((opened.number, place), opened, request, ask.generator)
            if generator.batch > 1:
                self._waiting.append(waiting)
            elif not self._budget.reserve(ask.generator, request):
                self._parked.append(waiting)
            elif generator.parallel:
                self._send([waiting])
            else:
                self._deliver([waiting], self._complete(generator, [waiting]))
        return None if len(opened.answers) < len({request.key for request in ask.requests}) else self._collect(opened)

    def _collect(self, opened: _Open) -> list[Answer]:
        assert opened.ask is not None
        return [opened.answers[request.key] for request in opened.ask.requests]

    def _unpark(self) -> bool:
        """Send what the budget has room for now; return whether there was anything to wait or look for."""
        if not self._parked:
            return False
        idle = not self._running
        parked, self._parked = self._parked, []
        for entry in parked:
            generator = self._generators[entry.generator]
            if not self._allowed(entry):
                self._parked.append(entry)
            elif generator.parallel:
                self._send([entry])
            else:
                self._deliver([entry], self._complete(generator, [entry]))
                self._wake([entry])
        if idle and len(self._parked) == len(parked):
            self._refuse(self._parked)
            self._parked = []
        return True

    def _allowed(self, waiting: _Waiting) -> bool:
        return not waiting.owner.refused and self._budget.reserve(waiting.generator, waiting.request)

    def _refuse(self, entries: Sequence[_Waiting]) -> None:
        """Give up on what does not fit even while nothing is under way."""
        for entry in entries:
            entry.owner.refused = self._exhausted = True

    def _send_batch(self) -> bool:
        """Send the first batch of those that wait; return whether there was one."""
        while self._waiting:
            self._waiting.sort(key=lambda entry: (entry.place, entry.generator))
            name = self._waiting[0].generator
            size = self._generators[name].batch
            batch = [entry for entry in self._waiting if entry.generator == name][:size]
            chosen = {id(entry) for entry in batch}
            self._waiting = [entry for entry in self._waiting if id(entry) not in chosen]
            allowed = {id(entry) for entry in batch if self._allowed(entry)}
            rest = [entry for entry in batch if id(entry) not in allowed]
            if allowed:
                self._waiting += rest  # there may be room when the others are answered
                self._send([entry for entry in batch if id(entry) in allowed])
                return True
            self._refuse(rest)
        return False

    def _send(self, batch: Sequence[_Waiting]) -> None:
        name = batch[0].generator
        generator = self._generators[name]

        def done(future: Future[list[Answer]]) -> None:
            self._deliver(batch, future.result())
            self._wake(batch)

        self._start(self._senders[id(generator)].submit(self._complete, generator, batch), done)

    def _complete(self, generator: Generator, batch: Sequence[_Waiting]) -> list[Answer]:
        """Get answers and write them down, before this thread sends anything else."""
        answers: list[Answer]
        try:
            answers = list(generator.complete([entry.request for entry in batch]))
        except Unanswerable as refusal:
            answers = [Refused(str(refusal), *refusal.tokens)] * len(batch)
        rows = []
        for entry, answer in zip(batch, answers, strict=True):
            cost = self._budget.settle(entry.generator, entry.request, answer)
            rows.append((entry.owner.number, entry.request.key, answer, cost))
        self._journal.answers(rows)
        return answers

    def _deliver(self, batch: Sequence[_Waiting], answers: Sequence[Answer]) -> None:
        for entry, answer in zip(batch, answers, strict=True):
            entry.owner.answers[entry.request.key] = answer

    def _wake(self, batch: Sequence[_Waiting]) -> None:
        """Let go on whoever has all its answers."""
        for opened in {id(entry.owner): entry.owner for entry in batch}.values():
            assert opened.ask is not None
            if all(request.key in opened.answers for request in opened.ask.requests):
                self._ready.append((opened, self._collect(opened)))

    def _start(self, future: Future[Any], done: Callable[[Future[Any]], None]) -> None:
        self._running += 1

        def finished(ended: Future[Any]) -> None:
            self._events.put(lambda: self._conclude(ended, done))

        future.add_done_callback(finished)

    def _conclude(self, future: Future[Any], done: Callable[[Future[Any]], None]) -> None:
        self._running -= 1
        done(future)

    def _drain(self) -> None:
        """Write down what is still being answered: it is paid for."""
        for generator in self._generators.values():
            generator.stop()
        failures: Counter[str] = Counter()
        while self._running:
            try:
                self._events.get()()
            except Exception as error:  # the first one is on its way to the user
                failures[type(error).__name__] += 1


def _verdict(check: Check) -> Verdict:
    """Let a verifier decide; what it cannot cope with, however odd, costs one candidate and not the run."""
    try:
        return check.verifier.check(check.item, check.candidate)
    except (UserError, SandboxFailed):
        raise
    except Exception as error:
        return Verdict(False, "cannot be checked", {"error": f"{type(error).__name__}: {error}"[:200]})
