"""Runs a command inside a site of the lab: `python -m isthmus.launch.lab.jail NETWORK -- COMMAND`.

The command gets the site's network and a process namespace of its own. Whatever happens to the lab, Ctrl-C or kill -9,
the kernel ends the command and all that it has started: the jail dies with the lab, the command with the jail, and a
process namespace with its first process. A namespace without processes is removed by the kernel.
"""

import os
import signal
import sys
from types import FrameType

from isthmus.launch.lab.linux import CLONE_NEWNET, CLONE_NEWPID, setns, unshare
from isthmus.processes import die_with_parent


def main() -> int:
    network, separator, *command = sys.argv[1:]
    assert separator == "--"
    die_with_parent()
    setns(int(network), CLONE_NEWNET)
    unshare(CLONE_NEWPID)
    child = os.fork()
    if child == 0:
        die_with_parent()
        os.execvp(command[0], command)

    def forward(number: int, frame: FrameType | None) -> None:
        os.kill(child, number)

    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, forward)
    while True:
        _, status = os.waitpid(child, 0)
        if not os.WIFSTOPPED(status):
            code = os.waitstatus_to_exitcode(status)
            return code if code >= 0 else 128 - code


if __name__ == "__main__":
    sys.exit(main())
