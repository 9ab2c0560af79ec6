"""From what the ranks saw of each other across sites to findings about the meeting, ports, links and clocks. Pure."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from isthmus.launch.preflight.config import PreflightConfig
from isthmus.launch.preflight.doors import HINTS, Door
from isthmus.launch.preflight.findings import Finding, Sites, Status, everyone, looks_of, place, share
from isthmus.launch.preflight.judge_sites import clock_status

_LEAST_JITTER_SECONDS = 0.02  # below, it is the two machines' own
_JITTER_SHARE = 0.5  # of a round trip; more, and TCP takes late packets for lost ones
# On a link with a round trip below this, every congestion control recovers from a loss fast enough.
_LONG_TRIP_SECONDS = 0.01
_STILL_RISING = 1.25  # so much more with twice the streams: yet more of them would bring more
_KERNEL_SHARE = 2.0  # of a socket's buffer, half is kept for the kernel's own bookkeeping (tcp_adv_win_scale)


@dataclass(frozen=True)
class Direction:
    """One way of a link: payload by number of streams, losses (None: unknown), lateness, segments sent again.

    `together` is the payload of all machines of both sites at once, where there are several.
    """

    mbps: Mapping[int, float]
    loss: float | None
    jitter_seconds: float | None
    repeated: float
    together_mbps: float | None = None

    @property
    def best_mbps(self) -> float:
        return max([*self.mbps.values(), self.together_mbps or 0.0])


@dataclass(frozen=True)
class MeasuredLink:
    """`out` leads from the first end to the second, `back` from the second to the first."""

    ends: tuple[str, str]
    rtt_seconds: float
    clock_ahead_seconds: float  # of the second end
    out: Direction
    back: Direction

    def to_json(self) -> dict[str, Any]:
        return {
            "between": list(self.ends),
            "rtt_ms": 1e3 * self.rtt_seconds,
            "clock_ahead_seconds": self.clock_ahead_seconds,
            "directions": [
                {
                    "from": source,
                    "to": target,
                    "mbps": {str(count): rate for count, rate in way.mbps.items()},
                    "together_mbps": way.together_mbps,
                    "loss": way.loss,
                    "jitter_ms": None if way.jitter_seconds is None else 1e3 * way.jitter_seconds,
                    "segments_repeated": way.repeated,
                }
                for (source, target), way in ((self.ends, self.out), (self.ends[::-1], self.back))
            ],
        }


def measured_links(sites: Sites) -> list[MeasuredLink]:
    """Return each link that was measured, once."""
    found: dict[tuple[str, str], MeasuredLink] = {}
    for name, site in sites.items():
        for other, seen in _across(site, "0").items():
            key = tuple(sorted((name, other), key=list(sites).index)) if other in sites else (name, other)
            if "link" in seen and key not in found and key[::-1] not in found:
                out, back = (_direction(seen["link"][way], _together(site, other, way)) for way in ("out", "in"))
                ahead = seen["link"]["clock_ahead_seconds"]
                if key[0] != name:
                    out, back, ahead = back, out, -ahead
                found[key[0], key[1]] = MeasuredLink((key[0], key[1]), seen["link"]["rtt_seconds"], ahead, out, back)
    return list(found.values())


def judge_links(
    sites: Sites, links: Sequence[MeasuredLink], keys: PreflightConfig, *, names: Sequence[str], streams: int
) -> list[Finding]:
    """Return findings about everything between sites.

    Args:
        names: all sites that were to come, in order.
        streams: connections of a lane.
    """
    return [
        *_meeting(sites, names),
        *_ports(sites, names),
        *(finding for link in links for finding in _link(sites, link, keys, streams)),
    ]


def _meeting(sites: Sites, names: Sequence[str]) -> Iterator[Finding]:
    failed = False
    for site, look in everyone(sites):
        if failure := (look.get("abroad") or {}).get("store"):
            failed = True
            fix = "open sites.store's port there, and start all sites within preflight.wait_seconds"
            yield Finding(Status.fail, "meeting", place(site, look), failure, fix, look["node"])
    for name in names:
        if name not in sites:
            # What cannot be told apart from here: it has not started, or it cannot reach the store.
            fix = "start it too; if it runs, its own table says why it cannot reach sites.store"
            yield Finding(Status.fail, "meeting", name, "did not come", fix)
            failed = True
    if not failed and len(names) > 1:
        yield Finding(Status.passed, "meeting", "everywhere", f"{len(names)} sites reach sites.store from every rank")


def _ports(sites: Sites, names: Sequence[str]) -> Iterator[Finding]:
    """Lanes: rank r of a site calls rank r of every later one."""
    for name, site in sites.items():
        open_ports: dict[str, list[int]] = {}
        for look in looks_of(site):
            links = (look.get("abroad") or {}).get("links") or {}
            if "error" in links:
                yield Finding(Status.fail, "lane ports", place(site, look), links["error"], "", look["node"])
                continue
            for other, seen in links.items():
                link = f"{name} > {other}, rank {look['rank']}"
                if seen.get("calling", True) and "error" in seen:
                    fix = "see the other site's table, and that no middlebox cuts connections"
                    yield Finding(Status.fail, "lane ports", link, seen["error"], fix)
                elif seen.get("calling") and seen["door_there"] != Door.open.name:
                    yield Finding(Status.fail, "lane ports", link, *_closed(name, other, seen))
                elif seen.get("calling"):
                    open_ports.setdefault(other, []).append(look["rank"])
        for other, ranks in open_ports.items():
            told = f"{len(ranks)} of {len(ranks)} ports open"
            yield Finding(Status.passed, "lane ports", f"{name} > {other}", told)


def _closed(name: str, other: str, seen: Mapping[str, Any]) -> tuple[str, str]:
    """Return what stands in the way of a lane, and what to do."""
    told = f"{seen['address']}: {HINTS[Door[seen['door_there']]]}"
    fix = f"let {name} reach lane.port_range of {other}"
    if seen["door_here"] == Door.open.name:
        fix += f"; or name {other} before {name} in sites.names: the way back, to {seen['own_address']}, is open"
    return told, fix


def _link(sites: Sites, link: MeasuredLink, keys: PreflightConfig, streams: int) -> Iterator[Finding]:
    first, second = link.ends
    ways = ((f"{first} > {second}", link.out), (f"{second} > {first}", link.back))
    between = f"{first} - {second}"
    yield Finding(Status.passed, "round trip", between, f"{1e3 * link.rtt_seconds:.3g} ms")
    ahead = link.clock_ahead_seconds
    told = f"{second} is {ahead:+.3g} s from {first}" if abs(ahead) > 0.1 else f"within {1e3 * abs(ahead):.3g} ms"
    status = clock_status(ahead, keys)
    fix = "let both keep time: chronyc tracking, timedatectl" if status is not Status.passed else ""
    yield Finding(status, "clock", between, told, fix)
    for where, way in ways:
        yield _losses(where, way, keys)
        if way.jitter_seconds is not None:
            late = way.jitter_seconds > max(_LEAST_JITTER_SECONDS, _JITTER_SHARE * link.rtt_seconds)
            fix = "look for other traffic on the link, or a machine whose processors are busy" if late else ""
            told = f"{1e3 * way.jitter_seconds:.3g} ms"
            yield Finding(Status.warn if late else Status.passed, "jitter", where, told, fix)
    yield from _bandwidths(link, ways, keys, streams)
    yield from _buffers(sites, link, streams)


def _losses(where: str, way: Direction, keys: PreflightConfig) -> Finding:
    """A loss halves the rate of a loss-based TCP: its rate falls with 1 / sqrt(loss) (Mathis et al., 1997)."""
    fix = "look for a bad port, cable or overfull queue on this way; raise lane.streams until then"
    if way.loss is None:
        # No verdict on it: BBR alone sends a tenth again where queues are short.
        told = f"not known, datagrams do not pass; TCP under load sent {share(way.repeated)} of its segments again"
        return Finding(Status.passed, "loss", where, told)
    if way.loss >= keys.loss:
        return Finding(Status.fail, "loss", where, share(way.loss), fix)
    status = Status.warn if way.loss >= keys.loss / 5 else Status.passed
    return Finding(status, "loss", where, share(way.loss), fix if status is Status.warn else "")


def _bandwidths(
    link: MeasuredLink, ways: Sequence[tuple[str, Direction]], keys: PreflightConfig, streams: int
) -> Iterator[Finding]:
    slower = min(ways, key=lambda entry: entry[1].best_mbps)
    faster = max(ways, key=lambda entry: entry[1].best_mbps)
    ratio = faster[1].best_mbps / max(slower[1].best_mbps, 1e-9)
    for where, way in ways:
        told = ", ".join(f"{count}: {rate:.3g}" for count, rate in way.mbps.items()) + " Mbit/s by streams"
        told += f", all machines {way.together_mbps:.3g}" if way.together_mbps is not None else ""
        if keys.link_mbps is not None and way.best_mbps < keys.link_mbps:
            fix = f"{keys.link_mbps:g} are asked for: look at the provider's limit, the route and other traffic"
            yield Finding(Status.fail, "bandwidth", where, told, fix)
            continue
        rising = streams > 1 and way.mbps[streams] > _STILL_RISING * max(
            rate for count, rate in way.mbps.items() if count < streams
        )
        fix = f"more streams bring more: try lane.streams={min(2 * streams, 64)}" if rising else ""
        yield Finding(Status.warn if rising else Status.passed, "bandwidth", where, told, fix)
    if ratio >= (1 + keys.asymmetry) / 2:
        told = f"{slower[1].best_mbps:.3g} Mbit/s, and {faster[1].best_mbps:.3g} the other way"
        fix = "sites send as much as they receive: look for a limit, a duplex mismatch or another route on this way"
        status = Status.fail if ratio >= keys.asymmetry else Status.warn
        yield Finding(status, "asymmetry", slower[0], told, fix)


def _buffers(sites: Sites, link: MeasuredLink, streams: int) -> Iterator[Finding]:
    """A stream cannot have more on its way than its buffers hold, nor fill a long link without BBR once it loses."""
    best = max(link.out.best_mbps, link.back.best_mbps)
    needed = best * 1e6 / 8 * link.rtt_seconds * _KERNEL_SHARE / streams
    lossy = max(link.out.loss or 0.0, link.back.loss or 0.0) > 0
    for name in link.ends:
        seen = [look.get("network", {}) for look in looks_of(sites[name])] if name in sites else []
        for network in [network for network in seen if "controls" in network][:1]:
            if network["largest_buffer"] < needed:
                told = f"sockets may hold {network['largest_buffer']} bytes, {needed:.0f} fill the link"
                fix = "raise net.ipv4.tcp_rmem and tcp_wmem, or lane.streams"
                yield Finding(Status.warn, "kernel", name, told, fix)
            if "bbr" not in network["controls"] and lossy and link.rtt_seconds > _LONG_TRIP_SECONDS:
                told = f"congestion control is {', '.join(network['controls'])}, and the link loses packets"
                yield Finding(Status.warn, "kernel", name, told, "load BBR: modprobe tcp_bbr")


def _across(site: Mapping[str, Any], number: str) -> Mapping[str, Any]:
    links = (site["ranks"].get(number, {}).get("abroad") or {}).get("links") or {}
    return {} if "error" in links else links


def _together(site: Mapping[str, Any], other: str, way: str) -> float | None:
    """Return the sum over a site's machines of what each carried while all did."""
    seen = [_across(site, number).get(other, {}).get("together") for number in site["ranks"]]
    rates = [each[way] for each in seen if each is not None]
    return sum(rates) if rates else None


def _direction(seen: Mapping[str, Any], together_mbps: float | None) -> Direction:
    mbps = {int(count): rate for count, rate in seen["mbps"].items()}
    return Direction(mbps, seen["loss"], seen["jitter_seconds"], seen["repeated"], together_mbps)
