"""A network namespace with one TUN device: a site's only way out."""

import fcntl
import os
import struct
import subprocess
import threading
from dataclasses import dataclass

from isthmus.errors import UserError
from isthmus.launch.lab.linux import CLONE_NEWNET, unshare

_TUNSETIFF = 0x400454CA  # linux/if_tun.h
_TUNSETOFFLOAD = 0x400454D0
_IFF_TUN, _IFF_NO_PI, _IFF_VNET_HDR = 0x0001, 0x1000, 0x4000
_TUN_F_CSUM, _TUN_F_TSO4 = 0x01, 0x02
DEVICE = "isthmus0"
_MTU = 1500


@dataclass(frozen=True)
class Namespace:
    """Open descriptors of a namespace and its device; when they and all processes are gone, the kernel removes both."""

    network: int
    device: int

    def close(self) -> None:
        os.close(self.network)
        os.close(self.device)


def open_namespace(address: str, *, offload: bool) -> Namespace:
    """Create a namespace in which `isthmus0` has the address, in a /24.

    Args:
        offload: let TCP hand down segments before they are cut.

    Raises:
        UserError: not permitted here.
    """
    opened: list[Namespace] = []
    failures: list[Exception] = []

    def create() -> None:
        try:
            opened.append(_create(address, offload))
        except (OSError, subprocess.CalledProcessError) as error:
            failures.append(error)

    # The system call moves the calling thread only; this one ends here.
    thread = threading.Thread(target=create)
    thread.start()
    thread.join()
    if failures:
        error = failures[0]
        reason = error.stderr.decode().strip() if isinstance(error, subprocess.CalledProcessError) else str(error)
        raise UserError(
            f"network namespaces with TUN devices are not permitted here ({reason})",
            where="lab.shape",
            fix="run as root with /dev/net/tun and the ip command, or use lab.shape=none for unshaped links",
        )
    return opened[0]


def _create(address: str, offload: bool) -> Namespace:
    unshare(CLONE_NEWNET)
    device = os.open("/dev/net/tun", os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        flags = _IFF_TUN | _IFF_NO_PI | _IFF_VNET_HDR
        fcntl.ioctl(device, _TUNSETIFF, struct.pack("16sH22x", DEVICE.encode(), flags))
        fcntl.ioctl(device, _TUNSETOFFLOAD, _TUN_F_CSUM | _TUN_F_TSO4 if offload else 0)
        for words in (
            f"link set dev {DEVICE} mtu {_MTU} txqueuelen 10000 up",
            f"addr add {address}/24 dev {DEVICE}",
            "link set dev lo up",
        ):
            subprocess.run(["ip", *words.split()], check=True, capture_output=True)
        network = os.open(f"/proc/self/task/{threading.get_native_id()}/ns/net", os.O_RDONLY | os.O_CLOEXEC)
    except BaseException:
        os.close(device)
        raise
    return Namespace(network, device)
