"""What the lab makes of the rows that a site writes."""

import pytest

from isthmus.launch.lab.watch import steps_between, waiting_share


@pytest.mark.parametrize(
    "steps", [[1, 2, 3, 4], [100, 200, 300], [10, 20, 25], [10, 20, 21], [100, 200]], ids=lambda steps: str(steps)
)
def test_waiting_is_weighted_by_the_steps_of_each_row(steps: list[int]) -> None:
    """Each step takes 2 s, of which 1.2 s are waiting, however many of them a row stands for."""
    before = 0
    rows = []
    for step in steps:
        rows.append({"step": step, "step_seconds": 2.0, "wan_exposed_seconds": 1.2 * (step - before)})
        before = step
    counts = steps_between(rows)
    assert waiting_share(rows, counts) == pytest.approx(0.6)
    assert waiting_share(rows[1:], counts[1:]) == pytest.approx(0.6)
