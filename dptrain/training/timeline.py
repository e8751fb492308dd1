"""--timeline: which steps are recorded, and the file with the spans of all ranks."""

from __future__ import annotations

import os
import socket

import dptrain
from dptrain.health.recorder import NO_RECORDER, SpanRecorder
from dptrain.parallel.clocks import clock_offsets
from dptrain.parallel.communicator import Communicator
from dptrain.training.trace_events import RankSpans, trace_json

WARM_UP = 5  # steps of this process before the first recorded one: they allocate memory and fill caches
FILE = "timeline.json"


class Timeline:
    """Records `steps` steps of this rank, or nothing if they are 0. Everything up to the next step belongs to them.

    Made before the workers are forked, as they inherit the communicator's recorder.
    """

    def __init__(self, steps: int, communicator: Communicator) -> None:
        self._steps, self._communicator = steps, communicator
        self.recorder = communicator.recorder = SpanRecorder() if steps else NO_RECORDER
        self.first = self.last = -1  # the number of the first and of the last recorded step

    def reach(self, step: int) -> bool:
        """Before the step after `step`, on all ranks: begin to record if it is time; True if all steps are recorded."""
        if self._steps and self.first < 0:
            self.first = step + WARM_UP + 1
        if step + 1 == self.first:
            self.recorder.recording = True
        elif self.recorder.recording:
            self.last = step
            return step + 1 == self.first + self._steps
        return False

    def collect(self) -> bytes:
        """On all ranks: end the recording; the file's content."""
        communicator, recorder = self._communicator, self.recorder
        recorder.recording, self._steps = False, 0
        communicator.activity.enter("collecting the timeline")
        offsets = clock_offsets(communicator)
        rank = communicator.world_ranks[communicator.rank]
        ranks = communicator.allgather(RankSpans(rank, socket.gethostname(), os.getpid(), recorder.take()))
        accuracy = {f"rank {one.rank}": 1e6 * offset.accuracy for one, offset in zip(ranks, offsets, strict=True)}
        facts = {
            "dptrain": dptrain.__version__,
            "first_step": self.first,
            "last_step": self.last,
            "clock_accuracy_microseconds": accuracy,
        }
        return trace_json(ranks, offsets, facts) if communicator.rank == 0 else b""
