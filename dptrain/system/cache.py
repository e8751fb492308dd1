"""The size of a core's second-level cache, by which networks choose how much to compute at once."""

from __future__ import annotations

import os
from pathlib import Path

DEFAULT_KIB = 512  # where it is not known; also the constant for results that must not depend on the machine
LEAST_KIB, LARGEST_KIB = 64, 65_536
SC_LEVEL2_CACHE_SIZE = 191  # glibc, bits/confname.h; Python does not know the name
CACHES = Path("/sys/devices/system/cpu/cpu0/cache")


def second_level_cache(caches: Path = CACHES) -> int:
    """KiB of the second-level cache that one core of this machine has; DEFAULT_KIB where it is not known."""
    try:
        for folder in sorted(caches.glob("index*")):
            facts = {name: (folder / name).read_text(encoding="ascii").strip() for name in ("level", "type", "size")}
            if facts["level"] == "2" and facts["type"] in ("Unified", "Data") and facts["size"].endswith("K"):
                return _bounded(int(facts["size"][:-1]))
    except (OSError, ValueError):
        pass
    try:
        return _bounded(os.sysconf(SC_LEVEL2_CACHE_SIZE) >> 10)
    except (OSError, ValueError):  # not known to this system
        return DEFAULT_KIB


def _bounded(kib: int) -> int:
    return kib if LEAST_KIB <= kib <= LARGEST_KIB else DEFAULT_KIB
