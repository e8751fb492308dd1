"""Did this process report the end of the run? At the end, rank 0 need not be the rank 0 of the beginning."""

from __future__ import annotations

from dptrain.training.events import Event, RunFinished


class EndOfRun:
    """A reporter that only notes whether it received the last event."""

    reported = False

    def handle(self, event: Event) -> None:
        self.reported = self.reported or isinstance(event, RunFinished)

    def close(self) -> None:
        """There is nothing to release."""
