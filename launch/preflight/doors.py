"""Does a port open from here, and if not, who is in the way?"""

import errno
import socket
from enum import Enum

from isthmus.parallelism.sites.dialing import Address

_KNOCK_SECONDS = 4.0


class Door(Enum):
    """What came of calling a port. The hints are about TCP: a refusal comes back at once, a firewall's drop never."""

    open = "open"
    refused = "refused"
    silent = "silent"
    unreachable = "unreachable"
    unknown = "unknown"


HINTS = {
    Door.refused: "refused: nobody listens there, or a firewall rejects it",
    Door.silent: "no answer at all: a firewall or a security group drops it, or the address is another machine's",
    Door.unreachable: "no route there: check the address, the VPN or the routing table",
    Door.unknown: "its name does not resolve: check the host name and DNS",
}


def knock(address: Address, seconds: float = _KNOCK_SECONDS) -> Door:
    """Open a connection and close it again."""
    try:
        with socket.create_connection(address, timeout=seconds):
            return Door.open
    except socket.gaierror:
        return Door.unknown
    except ConnectionRefusedError:
        return Door.refused
    except TimeoutError:
        return Door.silent
    except OSError as error:
        # What an iptables REJECT of another kind sends back looks like a missing route.
        return Door.refused if error.errno == errno.ECONNRESET else Door.unreachable
