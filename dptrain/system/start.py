"""What every program does first: `dptrain`, `data_prep` and `launch`."""

from __future__ import annotations

from dptrain.system.signals import prepare_signals
from dptrain.system.streams import prepare_streams


def start_program() -> None:
    """Bring streams and signals into a known state, whatever the parent process left. Calling it twice is fine."""
    prepare_streams()
    prepare_signals()
