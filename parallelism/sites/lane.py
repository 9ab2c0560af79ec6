"""The lane: what a rank needs of the channel to the ranks of its number in the other sites."""

from collections.abc import Callable, Mapping, Sequence
from typing import Protocol

from typing_extensions import Buffer


class LaneError(Exception):
    """Another site cannot be reached any more, or is silent.

    Args:
        site: its name.
        lane: number of the rank whose lane it is.
        what: what happened.
    """

    def __init__(self, site: str, lane: int, what: str) -> None:
        self.site, self.lane = site, lane
        super().__init__(f"lane {lane} to site {site}: {what}")


class Exchange(Protocol):
    """Messages on their way."""

    def done(self) -> bool: ...

    def wait(self) -> dict[int, memoryview]:
        """Return what each other site sent under the same tag.

        Raises:
            LaneError: a site has gone, or nothing has come from it for the lane's deadline.
        """
        ...


class Lane(Protocol):
    """Carries messages between the ranks of one number in all sites."""

    @property
    def site(self) -> int:
        """This site's place among `names`."""

    @property
    def names(self) -> Sequence[str]: ...

    @property
    def bytes_sent(self) -> int:
        """Counted at the socket, headers of chunks included."""

    @property
    def bytes_received(self) -> int: ...

    def bytes_by_site(self) -> Mapping[int, tuple[int, int]]:
        """Return (sent, received) of each other site."""
        ...

    def listen(self, tag: int, callback: Callable[[], None]) -> None:
        """Call `callback` once, on a thread of the lane's, when a first message with this tag has come from anyone."""
        ...

    def pulse(self) -> None:
        """Let the other sites know that this one still trains, should it have been silent for long."""
        ...

    def exchange(self, tag: int, payloads: Mapping[int, Buffer]) -> Exchange:
        """Send each payload to its site, and expect one message of the same tag (64 bits, used once) from each.

        Several exchanges may be under way, begun by the sites in any order. A payload must not be changed before
        `wait` has returned.
        """
        ...

    def close(self) -> None: ...


def peers_of(lane: Lane) -> list[int]:
    """Return the places of the other sites."""
    return [site for site in range(len(lane.names)) if site != lane.site]


def send_to_all(lane: Lane, tag: int, message: Buffer) -> Exchange:
    """Send the same message to every other site, and expect one from each."""
    return lane.exchange(tag, dict.fromkeys(peers_of(lane), message))
