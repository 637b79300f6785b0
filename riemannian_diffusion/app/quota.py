"""How much each visitor's address may upload."""

from __future__ import annotations

import ipaddress
import time
from collections.abc import Callable

SLOT = 60.0  # seconds of uploads that are counted together


class Quota:
    """Counts what was uploaded lately from each address.

    An IPv6 address stands for its /64 network, of which one visitor has all addresses.

    Args:
        uploads: Most uploads of an address.
        num_bytes: Most bytes of an address.
        seconds: The time for which an upload counts.
        clock: Returns the time in seconds.
    """

    def __init__(
        self,
        uploads: int,
        num_bytes: int,
        seconds: float,
        clock: Callable[[], float] = time.monotonic,
    ):
        self._uploads, self._num_bytes, self._seconds = uploads, num_bytes, seconds
        self._clock = clock
        self._slot = 0
        self._spent: dict[str, dict[int, list[int]]] = {}  # address -> slot -> uploads and bytes

    def spend(self, address: str, *, uploads: int = 0, num_bytes: int = 0) -> bool:
        """Count uploads or bytes of an address, if it may still make them.

        Args:
            address: The address.
            uploads: The number of uploads that begin.
            num_bytes: The number of bytes that have arrived.

        Returns:
            Whether it may; otherwise nothing is counted.
        """
        slot = int(self._clock() // SLOT)
        if slot != self._slot:
            self._forget(slot)
        mine = self._spent.setdefault(network_of(address), {})
        before = [sum(part) for part in zip(*mine.values(), strict=True)] or [0, 0]
        if before[0] + uploads > self._uploads or before[1] + num_bytes > self._num_bytes:
            return False
        now = mine.setdefault(slot, [0, 0])
        now[0] += uploads
        now[1] += num_bytes
        return True

    def _forget(self, slot: int) -> None:
        """Forget what no longer counts."""
        self._slot, oldest = slot, slot - self._seconds / SLOT
        for address, mine in [*self._spent.items()]:
            kept = {one: spent for one, spent in mine.items() if one >= oldest}
            if kept:
                self._spent[address] = kept
            else:
                del self._spent[address]


def network_of(address: str) -> str:
    """An address, and of IPv6 its /64 network; what is no address stays as it is."""
    try:
        found = ipaddress.ip_address(address.partition("%")[0])
    except ValueError:
        return address
    if found.version == 4:
        return str(found)
    if found.ipv4_mapped is not None:
        return str(found.ipv4_mapped)
    return str(ipaddress.ip_network(f"{found}/64", strict=False))
