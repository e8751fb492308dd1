"""When a job that failed is started again: how often, after which pause, on how many ranks."""

from __future__ import annotations

from dataclasses import dataclass

FIRST_PAUSE = 1.0  # seconds; doubled after every attempt that made no step
LONGEST_PAUSE = 60.0
MOST_IN_VAIN = 8  # attempts in a row, over 3 minutes of pauses


@dataclass
class Restarts:
    """The restarts of a job; at most `most` of them count, and each of those has one rank fewer, but `min_ranks`.

    A restart counts if the attempt before it made a step, or ended with a report of dptrain itself or the death of a
    rank. It does not count if the run did not begin, because a host cannot be reached for example: that may pass, and
    fewer ranks do not help.
    """

    most: int
    ranks: int
    min_ranks: int
    counted: int = 0
    in_vain: int = 0  # attempts in a row that made no step
    counts: bool = True  # whether the restart to come is counted

    def pause(self, made_steps: bool, reported: bool) -> float | None:
        """The seconds to wait after an attempt that failed; None if the job is not to be started again."""
        self.in_vain = 0 if made_steps else self.in_vain + 1
        self.counts = made_steps or reported
        if self.counts:
            if self.counted >= self.most:
                return None
            self.counted += 1
            self.ranks = max(self.ranks - 1, self.min_ranks)
        elif self.most == 0 or self.in_vain > MOST_IN_VAIN:
            return None
        return min(FIRST_PAUSE * 2.0 ** max(self.in_vain - 1, 0), LONGEST_PAUSE)
