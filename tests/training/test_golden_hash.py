"""--portable: the same bits on every x86-64 CPU with AVX2 and FMA, whatever NumPy and OpenBLAS would choose."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import golden_runs
import pytest

from data_prep.__main__ import main as data_prep
from dptrain.system.blas import missing_instructions

# Hash of the parameters and test loss at the end of each run of golden_runs.py, the same on every machine. They change
# only with the arithmetic of the project: see CONTRIBUTING. New values: the command at the head of golden_runs.py.
GOLDEN = {
    "convnet": "4f46c2e7092205dabd5f9a4f6ddcc7818ebe726ea3102f603061c957239ac166 2.300611201673746",
    "batch norm, GELU and Muon": "6a1d1d3c66c07eb37377bfdc617fd767998aeebf81e5904ed7f38f16118422ff 2.3461482524871826",
}

pytestmark = pytest.mark.skipif(bool(missing_instructions()), reason="a CPU without AVX2 and FMA")


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("golden") / "shapes"
    assert data_prep(["shapes", str(folder), *golden_runs.IMAGES]) == 0
    return folder


def output(*words: str | Path, **variables: str) -> str:
    """Standard output of a Python program that is started with these environment variables."""
    command = [sys.executable, "-W", "ignore", *map(str, words)]  # NumPy warns of CPU features that it does not know
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), **variables}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.parametrize(
    "variables",
    [
        {},
        pytest.param(
            {"NPY_DISABLE_CPU_FEATURES": "X86_V4 AVX512_ICL AVX512_SPR AVX512F AVX512CD AVX512_SKX"},
            marks=pytest.mark.slow,
        ),
        pytest.param(
            {"NPY_DISABLE_CPU_FEATURES": "X86_V3 X86_V4 AVX2 FMA3 AVX512F", "OPENBLAS_CORETYPE": "Sandybridge"},
            marks=pytest.mark.slow,
        ),
    ],
    ids=["all CPU features", "NumPy without AVX-512", "NumPy without AVX2, OpenBLAS set to Sandybridge"],
)
def test_the_bits_of_portable_runs_are_those_of_every_other_machine(
    variables: dict[str, str], data: Path, tmp_path: Path
) -> None:
    found = json.loads(output(golden_runs.__file__, data, tmp_path / "runs", **variables))
    assert found == GOLDEN


@pytest.mark.slow
def test_the_generated_images_are_those_of_every_other_machine(data: Path, tmp_path: Path) -> None:
    """They need NumPy's sine, cosine and hypotenuse, whose last bits differ between machines, but are rounded."""

    def contents(folder: Path) -> list[str]:
        shards = json.loads((folder / "manifest.json").read_text())["splits"]["train"]
        return [shard["contents_sha256"] for shard in shards]

    without = {"NPY_DISABLE_CPU_FEATURES": "X86_V3 X86_V4 AVX2 FMA3 AVX512F"}
    output("-m", "data_prep", "shapes", tmp_path / "shapes", *golden_runs.IMAGES, **without)
    assert contents(tmp_path / "shapes") == contents(data)
    assert contents(data)[0] == "5178d73846330194d7657316cbf2c45d013deb32a91ff0349843b5a8e4231ad8"


@pytest.mark.slow
@pytest.mark.parametrize("portable", [True, False])
def test_the_file_of_config_can_ask_for_portable_bits(portable: bool, data: Path, tmp_path: Path) -> None:
    """NumPy must not be imported before the file is read."""
    config = tmp_path / "portable.toml"
    config.write_text(f"portable = {str(portable).lower()}\nepochs = 1\nbatch-size = 64\n")
    trained = output(
        *("-m", "dptrain", "train", data, "--config", config, "--run-dir", tmp_path / "run", "--json"),
        OPENBLAS_CORETYPE="Sandybridge",
    )
    summary = json.loads(trained.splitlines()[-1])
    golden, loss = GOLDEN["convnet"].split()
    assert (summary["params_sha256"] == golden) == portable
    evaluated = output(
        *("-m", "dptrain", "eval", tmp_path / "run", data, "--json", "--portable"), OPENBLAS_CORETYPE="Sandybridge"
    )
    assert (repr(json.loads(evaluated)["loss"]) == loss) == portable
    inspected = json.loads(output("-m", "dptrain", "inspect", tmp_path / "run", "--json"))
    assert inspected["config"]["portable"] == portable
    assert inspected["environment"]["blas_core"] == ("Haswell" if portable else "Sandybridge")
    assert inspected["environment"]["cpu"].endswith("(portable)") == portable
