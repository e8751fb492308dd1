"""What every program does first: `dptrain`, `data_prep` and `launch`."""

from __future__ import annotations

from dptrain.system.cores import bind_to_cores
from dptrain.system.signals import prepare_signals
from dptrain.system.streams import prepare_streams


def start_program() -> None:
    """Bring cores, streams and signals into a known state, whatever the parent process left. May be called twice."""
    bind_to_cores()
    prepare_streams()
    prepare_signals()
