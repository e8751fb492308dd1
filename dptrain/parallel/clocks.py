"""How far the clocks of the ranks are apart."""

from __future__ import annotations

import time
from typing import NamedTuple

from dptrain.parallel.communicator import Communicator

ROUNDS = 64


class Offset(NamedTuple):
    """What to subtract from a rank's clock to get that of rank 0, in seconds; the error is at most `accuracy`."""

    seconds: float
    accuracy: float


def clock_offsets(communicator: Communicator) -> list[Offset]:
    """Of each rank's time.perf_counter(), on every rank. All ranks call it.

    No rank leaves a barrier before all have entered it. So each barrier gives two bounds of an offset, as the two
    messages of a ping-pong do, and the narrowest bounds of all rounds count. Ranks of one host read the same clock:
    where 0 lies within the bounds, it is the offset.
    """
    times = []
    for _ in range(ROUNDS):
        entered = time.perf_counter()
        communicator.barrier()
        times.append((entered, time.perf_counter()))
    everyone = communicator.allgather(times)
    offsets = []
    for mine in everyone:
        pairs = list(zip(mine, everyone[0], strict=True))
        least = max(entered - left for (entered, _), (_, left) in pairs)
        most = min(left - entered for (_, left), (entered, _) in pairs)
        middle = 0.0 if least <= 0 <= most else (least + most) / 2
        offsets.append(Offset(middle, max(abs(least - middle), abs(most - middle))))
    offsets[0] = Offset(0.0, 0.0)
    return offsets
