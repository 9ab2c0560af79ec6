"""Who is told about the steps of a run: metrics, the console and the ledger, each where it is."""

from isthmus.fault_tolerance.heartbeat import Heartbeat
from isthmus.fault_tolerance.ledger import RunLedger
from isthmus.fault_tolerance.stragglers import Stragglers
from isthmus.parallelism.engine import Engine
from isthmus.train.metrics import Metrics
from isthmus.train.progress import ConsoleProgress
from isthmus.train.report import StepReport


class Observers:
    """Passes everything on; ranks other than 0 have neither metrics nor console."""

    def __init__(
        self,
        metrics: Metrics | None,
        console: ConsoleProgress | None,
        ledger: RunLedger,
        heartbeat: Heartbeat | None = None,
        stragglers: Stragglers | None = None,
        engine: Engine | None = None,
    ) -> None:
        self.metrics, self._ledger, self._heartbeat = metrics, ledger, heartbeat
        self._stragglers, self._engine = stragglers, engine
        self._all = [observer for observer in (metrics, console) if observer is not None]

    def start(self, step: int, tokens: int, held_out: dict[str, float] | None) -> None:
        for observer in self._all:
            observer.start(step, tokens, held_out)
        self._ledger.begin(step)
        if self._heartbeat is not None:
            self._heartbeat.step(step)

    def step(self, report: StepReport, held_out: dict[str, float] | None) -> None:
        if self._stragglers is not None and self._engine is not None:
            own = self._ledger.seconds_of("data"), self._engine.forward_seconds()
            compared = self._stragglers.step(report.step, *own)
            if compared is not None and self.metrics is not None:
                self.metrics.compared(compared)
        for observer in self._all:
            observer.step(report, held_out)
        self._ledger.step(report.step)
        if self._heartbeat is not None:
            self._heartbeat.step(report.step)

    def decided(self, step: int, decision: str, why: str) -> None:
        """The guard has skipped a batch, asked to go back, or ended the run."""
        if self.metrics is not None:
            self.metrics.decided(step, decision, why)
        self._ledger.decided(step, decision, why)

    def slowest_rank(self) -> str:
        """Return a line about the slowest rank of this attempt, or ""; all ranks of the site call it together."""
        compared = self._stragglers.whole_run() if self._stragglers is not None else None
        return compared.describe() if compared is not None else ""

    def close(self) -> None:
        for observer in self._all:
            observer.close()
