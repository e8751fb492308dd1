"""h5py and its HDF5 library. These checks run in a process of their own."""

from __future__ import annotations

from dptrain.doctor.finding import Check, Finding, failure, ok
from dptrain.doctor.software import OLDEST, is_older

REMEDY = f"install h5py again, as a wheel with its own HDF5: pip install --force-reinstall 'h5py>={OLDEST['h5py']}'"


def checks() -> list[Check]:
    return [Check("HDF5", check_hdf5, REMEDY)]


def check_hdf5() -> Finding:
    """Write a file in memory as a checkpoint is written, and read it with h5py."""
    import io

    import h5py
    import numpy as np

    from dptrain.system.hdf5 import plain_hdf5

    text = f"{h5py.version.hdf5_version}, h5py {h5py.version.version}"
    facts = {"hdf5": h5py.version.hdf5_version, "h5py": h5py.version.version}
    if is_older(h5py.version.version, OLDEST["h5py"]):
        return failure(text, f"dptrain needs h5py {OLDEST['h5py']} or later: pip install 'h5py>={OLDEST['h5py']}'")
    written = np.arange(100, dtype=np.float32)
    content, _ = plain_hdf5({"group/name": written}, {"attribute": 1})
    with h5py.File(io.BytesIO(content), "r") as file:
        same = np.array_equal(file["group/name"][()], written)
    return ok(text, **facts) if same else failure(f"{text}: an array that was written is read differently", REMEDY)
