"""What a rank's main thread does, for reports to the ranks that wait for it."""

from __future__ import annotations

import time

WAITING = "waiting for other ranks"  # in this phase a rank is not to blame for its lack of progress


class Activity:
    """The phase and step of the main thread, and the time of its last progress, by time.monotonic()."""

    def __init__(self) -> None:
        self.current: tuple[str, int | None] = ("starting", None)
        self.progress()

    def enter(self, phase: str, step: int | None = None) -> str:
        """Enter a phase, of this step or (None) of the same step as before. Returns the phase before."""
        self.progress()
        before, step_before = self.current
        self.current = (phase, step_before if step is None else step)
        return before

    def progress(self) -> None:
        """Part of the phase is done. May be called by any thread."""
        self.progressed = time.monotonic()
