"""Checks of a machine and its software, for `dptrain doctor`: a file for each subject.

They run on broken machines. So each check stands alone, an exception becomes a finding, and what may crash (NumPy,
HDF5, MPI) runs in a process of its own. Nothing is imported here or at the head of these modules that needs NumPy.
"""
