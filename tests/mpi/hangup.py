"""A rank that gets SIGHUP after MPI has started, as `nohup mpirun ...` and a closed terminal send it."""

import os
import signal

from dptrain.parallel.mpi import connect

connect()
os.kill(os.getpid(), signal.SIGHUP)
print("alive", flush=True)
