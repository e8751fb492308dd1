"""dptrain.system.old_hdf5: HDF5 is read in a separate process, which may fail."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import h5py
import numpy as np
import pytest

from dptrain.system import old_hdf5
from dptrain.system.old_hdf5 import read_isolated

CHECKOUT = Path(__file__).parents[2]
CHECKPOINT = Path(__file__).parents[1] / "fixtures" / "version-1" / "checkpoint.h5"


def test_modules_of_the_working_folder_are_not_imported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("h5py", "numpy", "resource"):
        (tmp_path / f"{name}.py").write_text("raise SystemExit('a module of the working folder was run')\n")
    monkeypatch.chdir(tmp_path)
    attributes, arrays = read_isolated(CHECKPOINT.read_bytes())
    assert attributes["step"] == 3
    assert set(arrays) == {
        f"{vector}/linear1.{name}" for vector in ("params", "momentum") for name in ("bias", "weight")
    }


def program(monkeypatch: pytest.MonkeyPatch, folder: Path, text: str) -> None:
    """Another program in place of the one that reads."""
    (folder / "reader.py").write_text(text)
    monkeypatch.setattr(old_hdf5, "__file__", str(folder / "reader.py"))


def test_a_crash_of_the_reading_process_is_a_one_line_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    program(monkeypatch, tmp_path, "import os\nos.kill(os.getpid(), 11)")
    with pytest.raises(ValueError, match=f"the process that reads HDF5 ended with -{int(signal.SIGSEGV)}"):
        read_isolated(b"x" * 10**6)


@pytest.mark.slow
def test_a_reading_process_that_does_not_end_is_killed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(old_hdf5, "SECONDS", (1, 0.0))
    program(monkeypatch, tmp_path, "import time\ntime.sleep(60)")
    started = time.monotonic()
    with pytest.raises(ValueError, match="not read within 1 s"):
        read_isolated(b"")
    assert time.monotonic() - started < 30


@pytest.mark.slow
def test_an_endless_reading_process_ends_even_if_its_parent_was_killed(tmp_path: Path) -> None:
    (tmp_path / "h5py.py").write_text("print('reading', flush=True)\nwhile True:\n    pass\n")
    text = "from dptrain.system import old_hdf5\nold_hdf5.SECONDS = (1, 0.0)\nold_hdf5._main()"
    child = subprocess.Popen(
        [sys.executable, "-c", text],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        env=os.environ | {"PYTHONPATH": f"{tmp_path}:{CHECKOUT}"},
    )
    with child:
        try:
            assert child.wait(timeout=30) == -signal.SIGXCPU
        finally:
            child.kill()
        assert child.stdout is not None
        assert child.stdout.read() == b"reading\n"


def test_the_reading_process_has_no_variables_of_mpi(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("OMPI_COMM_WORLD_SIZE", "PMIX_RANK", "PMI_FD", "SLURM_PROCID", "MPI_LOCALNRANKS"):
        monkeypatch.setenv(name, "1")
    seen = tmp_path / "seen"
    program(monkeypatch, tmp_path, f"import os, sys\nopen({str(seen)!r}, 'w').write(' '.join(os.environ))\nsys.exit(3)")
    with pytest.raises(ValueError, match="ended with 3"):
        read_isolated(b"")
    assert not [name for name in seen.read_text().split() if name.startswith(("OMPI", "PMI", "SLURM", "MPI"))]


@pytest.mark.slow
def test_contents_that_would_use_much_memory_or_open_files_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "large.h5"
    with h5py.File(path, "w") as file:
        file.create_dataset("a", (1 << 40,), np.uint8, chunks=(1 << 20,))
    with pytest.raises(ValueError, match="not stored in full"):
        read_isolated(path.read_bytes())
    with h5py.File(path, "w") as file:
        file.create_dataset("a", data=np.zeros(1 << 24, np.uint8), chunks=(1 << 24,), compression="gzip")
    with pytest.raises(ValueError, match="not stored in full"):
        read_isolated(path.read_bytes())
    os.mkfifo(tmp_path / "pipe.h5")
    with h5py.File(path, "w") as file:
        file["a"] = h5py.ExternalLink(str(tmp_path / "pipe.h5"), "/a")
    assert read_isolated(path.read_bytes()) == ({}, {})
