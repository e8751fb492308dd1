"""The same program on one rank or several: the parameters are the same to the bit.

python examples/mpi_program.py [FOLDER]
mpirun -n 2 python examples/mpi_program.py [FOLDER]
"""

import sys
from pathlib import Path

import dptrain

folder = Path(sys.argv[1] if len(sys.argv) > 1 else "runs/mpi_program")

# All ranks call this; rank 0 packs. With several hosts, the folder must be on a shared file system.
data = dptrain.pack("shapes", folder / "shapes", train=320, test=80, force=True)


class Report(dptrain.Callback):
    """Prints, on rank 0, how many ranks there were and what they have computed."""

    def on_finish(self, training, finished):
        print(f"ranks: {training.ranks}, test accuracy: {finished.test_accuracy:.1%}")
        print(f"params_sha256: {finished.params_sha256}")


# Each rank computes its part of the 8 shards. Rank 0 prints, writes the files (into a new folder in runs/) and calls
# the callbacks.
run = dptrain.train(data, epochs=1, batch_size=64, lr=0.02, output="none", callbacks=[Report()])
evaluation = run.load().evaluate(data)  # the ranks share this work, too; all have the result
