"""Going back behind a loss spike: agreed by all sites, written down, and carried out by a restart.

A restart from a checkpoint is exact on every layout and with every sync, so going back is one too, and nothing that is
under way needs to be undone.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from isthmus.errors import EXIT_REWIND, UserError
from isthmus.fault_tolerance.guard import GuardConfig
from isthmus.fault_tolerance.rewinds import Rewind, RewindLog, distrusted
from isthmus.fault_tolerance.store import Store
from isthmus.train.parts import Loader

Ask = Callable[[dict[str, Any]], list[dict[str, Any]]]


class Rewound(UserError):
    """The run goes back: all ranks of all sites leave, to be started again."""

    exit_code = EXIT_REWIND


class RunRewinds:
    """Carries one attempt's wish to go back to all sites, and what earlier attempts have decided to the loader.

    Args:
        folder: of the run, of this site.
        tell: prints one line for the user.
    """

    def __init__(
        self,
        config: GuardConfig,
        folder: Path,
        loader: Loader,
        *,
        site: str,
        global_batch: int,
        tell: Callable[[str], None],
    ) -> None:
        self._config, self._loader, self._site, self._batch, self._tell = config, loader, site, global_batch, tell
        self.log = RewindLog(folder)
        self.log.read()
        self._wish: Rewind | None = None

    @property
    def count(self) -> int:
        """How often the run has gone back."""
        return len(self.log.entries)

    def ask(self, step: int, why: str) -> None:
        """Called by the guard when the last batch drawn is the offending one."""
        end = int(self._loader.state_dict()["samples"])
        first = end - self._batch * (1 + self._config.rewind_skip_before)
        self._wish = Rewind(
            site=self._site,
            step=step,
            why=why,
            newest_trusted=max(step - self._config.rewind_steps, 0),
            skip=(max(first, 0), end + self._batch * self._config.rewind_skip_after),
        )

    def agree(self, ask_sites: Ask, *, attempt: int, writes: bool) -> list[Rewind]:
        """Return what any site wishes at a step after which all stop; it is on disk in all of them when this returns.

        Args:
            attempt: of this site, whose checkpoints are no longer trusted.
            writes: on one rank of the site.
        """
        wish = [] if self._wish is None else [self._wish.to_json()]
        answers = ask_sites({"rewinds": wish})
        wishes = [Rewind.from_json(entry) for answer in answers for entry in answer["rewinds"]]
        if wishes:
            if writes:
                self.log.add(wishes, attempt)
            ask_sites({})  # nobody leaves before everybody has written
        return wishes

    def meet(self, ask_sites: Ask, *, before: int, writes: bool) -> None:
        """Take up what any site has decided: one that was killed while it wrote hears of it here.

        Args:
            before: the number of this attempt.
        """
        answers = ask_sites({"rewinds": [entry.to_json() for entry in self.log.entries]})
        decided = [Rewind.from_json(entry) for answer in answers for entry in answer["rewinds"]]
        if writes:
            self.log.add(decided, before - 1)
        else:
            self.log.entries = list({entry.key: entry for entry in decided}.values())

    def set_aside(self, store: Store, step: int) -> None:
        """Abandon what is not trusted and lies beyond the step that the run goes on from."""
        found = [entry for entry in distrusted(store.scan(), self.log.entries) if entry.step > step]
        store.abandon(found)
        for entry in found:
            self._tell(f"{entry.folder.name} was saved too near a loss spike, or after it: it is not used")

    def apply(self) -> None:
        """Have the loader leave out the samples of all rewinds."""
        self._loader.skip_samples(range(*entry.skip) for entry in self.log.entries)
        for entry in self.log.entries:
            first, stop = entry.skip
            self._tell(f"samples {first} to {stop - 1} are left out since step {entry.step}, where {entry.why}")


def rewound(wishes: list[Rewind]) -> Rewound:
    """Return the error that ends the attempt."""
    first, trusted = wishes[0], min(wish.newest_trusted for wish in wishes)
    return Rewound(
        f"{first.why}; the run goes back to step {trusted} or the checkpoint before it",
        where=f"step {first.step}" + (f" of {first.site}" if first.site != "main" else ""),
        fix=f"samples {first.skip[0]} to {first.skip[1] - 1} are left out from then on; start the same command again",
    )
