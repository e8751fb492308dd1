"""dptrain.doctor.hdf5: an h5py that is too old, or reads something else than was written."""

from __future__ import annotations

import h5py
import numpy as np
import pytest

from dptrain.doctor.finding import FAILURE, OK
from dptrain.doctor.hdf5 import check_hdf5


def test_the_versions_are_reported() -> None:
    found = check_hdf5()
    assert (found.result, found.found) == (OK, f"{h5py.version.hdf5_version}, h5py {h5py.__version__}")


def test_an_old_h5py_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(h5py.version, "version", "3.10.0")
    assert check_hdf5().result == FAILURE


def test_an_array_that_is_read_differently_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(h5py.Dataset, "__getitem__", lambda *_: np.zeros(100, np.float32))
    found = check_hdf5()
    assert found.result == FAILURE
    assert "is read differently" in found.found
