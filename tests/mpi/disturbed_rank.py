"""dptrain, but after one step one rank's parameters or momentum get one wrong bit, as from failing memory.

python disturbed_rank.py RANK STEP TENSOR ARGUMENTS OF DPTRAIN...

TENSOR is for example "parameter conv1.weight", or "momentum of conv1.weight".
"""

from __future__ import annotations

import sys
from typing import Any

from dptrain.commands import main as cli
from dptrain.system.blas import request_one_thread

request_one_thread()

import numpy as np  # noqa: E402

from dptrain.parallel.communicator import launched_rank  # noqa: E402
from dptrain.report.recorder import Recorder  # noqa: E402

rank, step, tensor = int(sys.argv[1]), int(sys.argv[2]), sys.argv[3]
undisturbed_start, undisturbed_step = Recorder.started, Recorder.stepped
parts: dict[str, slice] = {}


def started(self: Recorder, session: Any, *others: Any) -> None:
    undisturbed_start(self, session, *others)
    parts.update(session.network.layout.slices)


def stepped(self: Recorder, state: Any, outcome: Any, lr: float) -> None:
    undisturbed_step(self, state, outcome, lr)
    if (launched_rank(), state.step) == (rank, step):
        vector = state.vectors["momentum" if tensor.startswith("momentum of ") else "parameters"]
        values = vector[parts[tensor.split()[-1]]]
        values[:1].view(np.uint32)[0] ^= 1 << 20  # the lowest bit could be rounded away again


Recorder.started, Recorder.stepped = started, stepped
sys.exit(cli.main(sys.argv[4:]))
