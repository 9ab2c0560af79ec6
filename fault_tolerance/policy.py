"""One table: what a failure means, whether to start again, and with which exit code to end."""

from dataclasses import dataclass
from enum import Enum

from isthmus.errors import (
    EXIT_BUG,
    EXIT_GAVE_UP,
    EXIT_HANG,
    EXIT_INTERRUPTED,
    EXIT_NODE_LOST,
    EXIT_OK,
    EXIT_REQUEUE,
    EXIT_REWIND,
    EXIT_SITE_LOST,
    EXIT_STORAGE,
    EXIT_USER_ERROR,
)


class Action(Enum):
    end = "end"  # with the exit code, for a person or a script to look at
    restart = "restart"  # at once, from the newest checkpoint
    requeue = "requeue"  # end; the scheduler starts the same command again


@dataclass(frozen=True)
class Rule:
    meaning: str
    action: Action
    counts: bool = True  # against the budget of restarts without progress
    goes_back: bool = False  # steps that were reached count no more


TABLE = {
    EXIT_OK: Rule("completed", Action.end),
    EXIT_USER_ERROR: Rule("something in the input is wrong", Action.end),
    EXIT_INTERRUPTED: Rule("interrupted by Ctrl-C", Action.end),
    EXIT_REQUEUE: Rule("asked to stop by a scheduler, a time limit or another site", Action.requeue),
    EXIT_SITE_LOST: Rule("another site was lost", Action.restart, counts=False),
    EXIT_HANG: Rule("a rank hung", Action.restart),
    # The guard has a budget of its own.
    EXIT_REWIND: Rule("going back behind a loss spike", Action.restart, counts=False, goes_back=True),
    EXIT_STORAGE: Rule("a checkpoint could not be written", Action.end),
    EXIT_BUG: Rule("an error of a rank", Action.restart),
    EXIT_NODE_LOST: Rule("a node failed and no spare was left", Action.requeue),
    EXIT_GAVE_UP: Rule("no progress after several restarts", Action.end),
}
KILLED = Rule("a rank was killed by a signal", Action.restart)


def rule_for(exit_code: int) -> Rule:
    """Return the rule of a rank's exit code; a negative one is that of a signal."""
    return KILLED if exit_code < 0 else TABLE.get(exit_code, TABLE[EXIT_BUG])


@dataclass
class RetryBudget:
    """Counts restarts that brought no new step."""

    limit: int
    best_step: int = -1
    fruitless: int = 0

    def allows(self, rule: Rule, reached_step: int) -> bool:
        """Return whether the run may be started again, after an attempt that got as far as `reached_step`."""
        if rule.action is not Action.restart or self.limit == 0:
            return False
        if reached_step > self.best_step:
            self.best_step, self.fruitless = reached_step, 0
        if rule.goes_back:
            self.best_step = -1
        if rule.counts:
            self.fruitless += 1
        return self.fruitless <= self.limit
