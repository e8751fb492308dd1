"""Where a rank's main thread is, to be told to those who wait for it."""

from __future__ import annotations

import time

WAITING = "waiting for other ranks"  # the phase in which a rank is not to blame for its lack of progress


class Whereabouts:
    """The phase and step that the main thread is in, and when it last got on, by time.monotonic().

    Cheap enough to be told several times a step (0.1 us): nobody is notified, a watch looks at it.
    """

    def __init__(self) -> None:
        self.where: tuple[str, int | None] = ("starting", None)
        self.moved = time.monotonic()

    def enter(self, phase: str, step: int | None = None) -> str:
        """The main thread is now in this phase, of this step or (None) the same as before; the phase it was in."""
        self.moved = time.monotonic()
        before, step_before = self.where
        self.where = (phase, step_before if step is None else step)
        return before

    def progress(self) -> None:
        """The phase goes on: something of it was done. Any thread may say so."""
        self.moved = time.monotonic()
