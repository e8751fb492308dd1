"""dptrain, but after one step one rank's parameters get one wrong bit, as from failing memory.

python disturbed_rank.py RANK STEP ARGUMENTS OF DPTRAIN...
"""

from __future__ import annotations

import sys
from typing import Any

from dptrain import cli
from dptrain.blas import request_one_thread

request_one_thread()

import numpy as np  # noqa: E402

from dptrain.observe.recorder import Recorder  # noqa: E402
from dptrain.parallel.communicator import launched_rank  # noqa: E402

rank, step = int(sys.argv[1]), int(sys.argv[2])
undisturbed = Recorder.stepped


def stepped(self: Recorder, state: Any, outcome: Any, lr: float) -> None:
    undisturbed(self, state, outcome, lr)
    if (launched_rank(), state.step) == (rank, step):
        state.parameters[:1].view(np.uint32)[0] ^= 1 << 20  # the lowest bit could be rounded away again


Recorder.stepped = stepped
sys.exit(cli.main(sys.argv[3:]))
