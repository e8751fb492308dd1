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

from dptrain.parallel.mpi import launched_rank  # noqa: E402
from dptrain.training.step import TrainingStep  # noqa: E402

rank, step, tensor = int(sys.argv[1]), int(sys.argv[2]), sys.argv[3]
undisturbed = TrainingStep.__call__


def disturbed(self: TrainingStep, state: Any, *others: Any) -> Any:
    outcome = undisturbed(self, state, *others)
    if (launched_rank(), state.step) == (rank, step):
        vector = state.vectors["momentum" if tensor.startswith("momentum of ") else "parameters"]
        values = vector[self.work.network.layout.slices[tensor.split()[-1]]]
        values[:1].view(np.uint32)[0] ^= 1 << 20  # the lowest bit could be rounded away again
    return outcome


TrainingStep.__call__ = disturbed  # type: ignore[assignment, method-assign]
sys.exit(cli.main(sys.argv[4:]))
