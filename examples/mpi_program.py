"""The same program on one rank or several: the parameters are the same to the bit.

python examples/mpi_program.py [FOLDER]
mpirun -n 2 python examples/mpi_program.py [FOLDER]
"""

import sys
from pathlib import Path

from mpi4py import MPI  # `import dptrain` alone starts no MPI

import dptrain

folder = Path(sys.argv[1] if len(sys.argv) > 1 else "runs/mpi_program")
ranks = MPI.COMM_WORLD

# Rank 0 packs the data set; the others wait for it. With several hosts, the folder must be on a shared file system.
if ranks.rank == 0:
    dptrain.pack("shapes", folder / "shapes", train=320, test=80, force=True)
ranks.Barrier()

# All ranks call `train`: each computes its part of the 8 shards. Rank 0 prints, and writes the files.
run = dptrain.train(
    folder / "shapes", epochs=1, batch_size=64, lr=0.02, output="quiet", run_dir=folder / f"ranks-{ranks.size}"
)
evaluation = run.load().evaluate(folder / "shapes")  # the ranks share this work, too
if ranks.rank == 0:
    print(f"ranks: {ranks.size}, test accuracy: {evaluation.accuracy:.1%}")
    print(f"params_sha256: {run.result['params_sha256']}")
