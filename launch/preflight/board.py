"""What ranks of a site, or sites, tell each other through a store. Every wait ends, and says who is missing."""

import json
import os
import time
from collections.abc import Mapping, Sequence
from datetime import timedelta
from typing import Any

from torch.distributed import PrefixStore, Store

_PAUSE_SECONDS = 0.05


class Board:
    """One member's view of a store.

    Args:
        members: everybody, in order.
        me: which of them this is.
    """

    def __init__(self, store: Store, members: Sequence[str], me: str) -> None:
        self.store, self.members, self.me = PrefixStore("preflight", store), list(members), me

    def post(self, topic: str, value: Any) -> None:
        """Let the others know this member's value of a topic; once."""
        self.store.set(f"{topic}/{self.me}", json.dumps(value))

    def collect(self, topic: str, seconds: float, members: Sequence[str] | None = None) -> dict[str, Any]:
        """Wait until all (or these) members have posted, or the time is up; return what is there."""
        members = self.members if members is None else list(members)
        keys = {member: f"{topic}/{member}" for member in members}
        if not keys or not self._wait(list(keys.values()), seconds):
            keys = {member: key for member, key in keys.items() if self.store.check([key])}
        values = self.store.multi_get(list(keys.values())) if keys else []
        return {member: json.loads(value) for member, value in zip(keys, values, strict=True)}

    def announce(self, topic: str, value: Any) -> None:
        """Say something to everybody; one member does, once."""
        self.store.set(f"{topic}/said", json.dumps(value))

    def hear(self, topic: str, seconds: float) -> Any:
        """Return what was announced, or None if it was not in time."""
        key = f"{topic}/said"
        return json.loads(self.store.get(key)) if self._wait([key], seconds) else None

    def _wait(self, keys: list[str], seconds: float) -> bool:
        """Ask again and again: a blocking wait of a store could not be told from a store that is gone."""
        ends = time.monotonic() + seconds
        pause = _PAUSE_SECONDS
        while not self.store.check(keys):
            if time.monotonic() > ends:
                return False
            time.sleep(pause)
            pause = min(2 * pause, 1.0)  # many ranks ask the same store
        return True


def site_store(rank: int, size: int, timeout_seconds: float, environment: Mapping[str, str] = os.environ) -> Store:
    """Return the store of this rank's site, as torchrun or a launcher has set it up; alone, one in memory.

    Unlike torch's own way to it, it does not wait for all ranks: one that never comes is what is to be found.
    """
    import torch.distributed as dist

    timeout = timedelta(seconds=timeout_seconds)
    if size == 1:
        return dist.HashStore()
    if environment.get("TORCHELASTIC_USE_AGENT_STORE") == "True":
        store, _, _ = next(dist.rendezvous("env://", rank=rank, world_size=size, timeout=timeout))
        return store
    return dist.TCPStore(
        environment["MASTER_ADDR"],
        int(environment["MASTER_PORT"]),
        is_master=rank == 0,
        wait_for_workers=False,
        timeout=timeout,
    )
