"""`isthmus launch logs RUN`: the logs of all ranks of all sites, merged by time."""

import queue
import re
import shlex
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from isthmus.errors import EXIT_OK, UserError
from isthmus.launch.record import SiteRecord, chosen_sites, read_record
from isthmus.launch.words import Words

_USAGE = """\
isthmus launch logs RUN [SITE] [RANK] [--follow] [--lines N]   what ranks and supervisors have logged

SITE: one of the run's. RANK: a number, or `console` for what the site's agents and jobs have printed.
--follow goes on until Ctrl-C. --lines: of each file, from its end (200). Times are of the clocks of the sites.
"""
_HEADER = re.compile(r"==> (.+) <==")
_TIME = re.compile(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d,\d{3}")
# A restart on other nodes writes to files that were not there before: those are followed from their first line, by a
# further tail whose lines are marked with its number, since each tail says only when it goes from file to file itself.
_FOLLOW = """\
{{
    declare -A known
    count=0 lines={lines}
    trap 'kill $(jobs -p) 2>/dev/null' EXIT
    trap exit TERM
    while :; do
        new=()
        for file in {pattern}; do
            [ -n "${{known[$file]}}" ] || new+=("$file")
            known[$file]=1
        done
        if [ ${{#new[@]}} -gt 0 ]; then
            tail -v -n "$lines" -F -- "${{new[@]}}" 2>/dev/null | sed -u "s/^/$count /" &
        fi
        count=$((count + 1)) lines=+1
        sleep 1 &
        wait $!
    done
}}"""
_HOLD_SECONDS = 1.0  # for lines of other sites that were written earlier and come later


@dataclass(order=True, frozen=True)
class Line:
    time: str
    site: str
    file: str
    number: int
    text: str

    def shown(self, sites: int) -> str:
        return f"{self.site + ' ' if sites > 1 else ''}{self.file}: {self.text}"


def main(argv: Sequence[str]) -> int:
    try:
        words = Words(argv, verb="launch logs", flags=["--follow", "-f"], options=["--lines"])
        if words.help or not words.rest:
            print(_USAGE, end="")
            return EXIT_OK if words.help else UserError.exit_code
        record = read_record(Path(words.rest[0]).expanduser())
        names = words.rest[1:2]
        sites = chosen_sites(record, names)
        rank = words.rest[2] if len(words.rest) > 2 else ""
        if rank and rank != "console" and not rank.isdigit():
            raise UserError(f"is '{rank}'", where="RANK", fix="give a number, or console")
        follow = words.flag("--follow") or words.flag("-f")
        commands = [_command(site, rank, words.number("--lines", 200), follow) for site in sites]
        tails = [site.shells()[0].open(command) for site, command in zip(sites, commands, strict=True)]
    except UserError as error:
        print(f"isthmus: {error}", file=sys.stderr)
        return error.exit_code
    try:
        signal.signal(signal.SIGINT, signal.default_int_handler)  # which `isthmus` has taken for its start
        for line in _merged(list(zip(sites, tails, strict=True)), follow):
            print(line.shown(len(sites)), flush=follow)
    except KeyboardInterrupt:
        pass
    finally:
        for tail in tails:
            assert tail.stdin is not None
            tail.stdin.close()  # which ends it
            tail.wait()
    return EXIT_OK


def _command(site: SiteRecord, rank: str, lines: int, follow: bool) -> str:
    if rank == "console":
        pattern = "launch/node-*.log launch/job-*.log"
    elif rank:
        pattern = f"logs/rank-{int(rank):05d}.log"
    else:
        pattern = "logs/rank-*.log logs/supervisor.log"
    enter = f"cd -- {shlex.quote(site.folder)} && shopt -s nullglob"
    if follow:
        return f"{enter} && {_FOLLOW.format(pattern=pattern, lines=lines)}"
    # Without a match there is nothing to show, which is no error.
    return f'{enter} && set -- {pattern} && [ $# -gt 0 ] && tail -v -n {lines} -- "$@" | sed -u "s/^/0 /"'


def _merged(tails: "Sequence[tuple[SiteRecord, subprocess.Popen[bytes]]]", follow: bool) -> Iterator[Line]:
    """Yield lines in order of time: all of them, or while following, as far as they have come within a moment."""
    lines: queue.Queue[Line | None] = queue.Queue()
    for site, tail in tails:
        threading.Thread(target=_read, args=(site.name, tail, lines), daemon=True).start()
    open_tails, held, flush_at = len(tails), list[Line](), time.monotonic() + _HOLD_SECONDS
    while open_tails:
        try:
            line = lines.get(timeout=0.2)
            if line is None:
                open_tails -= 1
            else:
                held.append(line)
        except queue.Empty:
            pass
        if follow and time.monotonic() > flush_at:
            yield from sorted(held)
            held, flush_at = [], time.monotonic() + _HOLD_SECONDS
    yield from sorted(held)


def _read(site: str, tail: "subprocess.Popen[bytes]", lines: "queue.Queue[Line | None]") -> None:
    """A line without a time (of a traceback) has that of the line before it in its file."""
    assert tail.stdout is not None
    files, latest = dict[str, str](), dict[str, str]()
    for number, raw in enumerate(tail.stdout):
        source, _, text = raw.decode(errors="replace").rstrip("\n").partition(" ")
        file = files.get(source, "")
        if header := _HEADER.fullmatch(text):
            files[source] = Path(header[1]).stem
        elif text or latest.get(file):
            if found := _TIME.match(text):
                latest[file] = found[0]
            if text:
                lines.put(Line(latest.get(file, ""), site, file, number, text))
    lines.put(None)
