"""dptrain.training.model_source: what a user's model file may import, and which files are kept."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from mpi_runs import own_mpi, python_of
from training_runs import packed

from dptrain.errors import FAILED, UsageError
from dptrain.nn.layer import Layer
from dptrain.training.architecture import Architecture, build_network, find_architecture
from dptrain.training.model_source import ModelSource, model_in_toml

NET = """
from dptrain.nn import Flatten, Linear
{imports}
def build(input_shape, classes):
    return [Flatten(), Linear({width}), Linear(classes)]
"""


def net(folder: Path, imports: str, width: str, **files: str) -> str:
    """A model file in `folder`, with neighbours given as path=source (with "__" for "/")."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, source in files.items():
        path = folder / (name.replace("__", "/") + ".py")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(source)
    (folder / "net.py").write_text(NET.format(imports=imports, width=width))
    return f"{folder / 'net.py'}:build"


def width_of(model: str | Architecture) -> int:
    return build_network(model, {}, (1, 3, 3), 2).layout.shapes["linear1.weight"][0]


def source_of(model: str) -> ModelSource:
    source = find_architecture(model).source
    assert source is not None
    return source


IMPORTS = {
    "a module": ("from layers import WIDTH", "WIDTH", {"layers": "WIDTH = 7"}),
    "a module of a module": ("import a", "a.W", {"a": "from b import W", "b": "W = 7"}),
    "a package": (
        "import pkg.deep",
        "pkg.deep.W",
        {"pkg/__init__": "", "pkg/deep": "from .more import W", "pkg/more": "W = 7"},
    ),
    "a folder without __init__": ("import space.deep", "space.deep.W", {"space/deep": "W = 7"}),
    "an import in the function": ("def width():\n    import late\n    return late.W", "width()", {"late": "W = 7"}),
    "a folder added to sys.path": (
        "import sys, pathlib\nsys.path.insert(0, str(pathlib.Path(__file__).parent / 'lib'))\nimport inside",
        "inside.W",
        {"lib/inside": "W = 7"},
    ),
    "by importlib": ("import importlib\nW = importlib.import_module('layers').W", "W", {"layers": "W = 7"}),
}


@pytest.mark.parametrize("case", IMPORTS)
def test_a_model_file_imports_its_neighbours_and_all_of_them_are_recorded(case: str, tmp_path: Path) -> None:
    """Found in the field: only `python -m dptrain` in the file's own folder could import them."""
    imports, width, files = IMPORTS[case]
    model = net(tmp_path / "m", imports, width)
    for name, text in files.items():
        path = tmp_path / "m" / f"{name}.py"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    architecture = find_architecture(model)
    assert width_of(architecture) == 7
    assert architecture.source is not None
    assert sorted(architecture.source.files) == sorted(["net.py", *(f"{name}.py" for name in files)])
    assert not list(tmp_path.rglob("__pycache__"))


def test_a_neighbour_does_not_replace_a_module_of_python_or_dptrain(tmp_path: Path) -> None:
    """A `random.py` in the folder must not break NumPy; a folder `dptrain` (a clone) must not break dptrain."""
    wrong = "raise SystemError('the wrong one')"
    files = {"random": wrong, "numpy": wrong, "dptrain__nn__hidden": wrong, "dptrain____init__": wrong, "queue": wrong}
    model = net(
        tmp_path, "import random, queue, colorsys, numpy, dptrain.nn\nrandom.random", "3", **files, colorsys=wrong
    )
    assert width_of(model) == 3


def test_model_files_may_have_neighbours_with_the_same_name(tmp_path: Path) -> None:
    one = net(tmp_path / "one", "from layers import W", "W", layers="W = 3")
    other = net(tmp_path / "other", "from layers import W", "W", layers="W = 5")
    assert [width_of(model) for model in (one, other, one)] == [3, 5, 3]


def test_edited_neighbours_are_read_again_despite_a_pyc(tmp_path: Path) -> None:
    """The files have the same size and time, so Python would accept the old .pyc."""
    model = net(tmp_path, "from layers import W", "W", layers="W = 3")
    subprocess.run([sys.executable, "-m", "compileall", "-q", tmp_path], check=True)
    stamp = (tmp_path / "layers.py").stat()
    (tmp_path / "layers.py").write_text("W = 5")
    os.utime(tmp_path / "layers.py", ns=(stamp.st_atime_ns, stamp.st_mtime_ns))
    assert width_of(model) == 5


def test_a_symbolic_link_is_followed_as_python_does_for_a_script(tmp_path: Path) -> None:
    net(tmp_path / "real", "from layers import W", "W", layers="W = 3")
    (tmp_path / "link.py").symlink_to(tmp_path / "real" / "net.py")
    source = source_of(f"{tmp_path / 'link.py'}:build")
    assert sorted(source.files) == ["layers.py", "link.py"]


def test_only_what_is_loaded_is_recorded(tmp_path: Path) -> None:
    """Also if the folder is a home folder that contains a Python environment."""
    packages = tmp_path / "venv" / "lib" / "site-packages"
    (packages / "other_package").mkdir(parents=True)
    (packages / "other_package" / "__init__.py").write_text("W = 3")
    (tmp_path / "unrelated.py").write_text("raise SystemError")
    model = net(tmp_path, "import other_package", "other_package.W")
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(packages))
        assert sorted(source_of(model).files) == ["net.py"]


def test_the_executed_code_is_the_recorded_code(tmp_path: Path) -> None:
    """Even if the file changes while it is loaded."""
    model = net(tmp_path, "import pathlib\npathlib.Path(__file__).write_text('')", "3")
    content = (tmp_path / "net.py").read_bytes()
    assert source_of(model).files["net.py"] == content
    assert (tmp_path / "net.py").read_bytes() == b""


def test_files_in_other_encodings_are_kept_byte_by_byte(tmp_path: Path) -> None:
    model = net(tmp_path, "", "3")
    content = b"# -*- coding: latin-1 -*-\nNAME = 'caf\xe9'\n" + (tmp_path / "net.py").read_bytes()
    (tmp_path / "net.py").write_bytes(content)
    assert source_of(model).files["net.py"] == content


def test_changed_new_and_missing_files_are_listed(tmp_path: Path) -> None:
    model = net(tmp_path, "import same, other, gone", "3", same="", other="x = 1", gone="")
    before = source_of(model).hashes()
    assert source_of(model).changed_files(before, "net.py") == []
    (tmp_path / "gone.py").unlink()
    net(tmp_path, "import same, other, new", "3", other="x = 2", new="")
    assert source_of(model).changed_files(before, "net.py") == ["gone.py", "net.py", "new.py", "other.py"]


def test_a_file_that_is_imported_later_or_has_another_name_is_not_a_change(tmp_path: Path) -> None:
    model = net(tmp_path, "def later():\n    import late", "3", late="")
    early = source_of(model)
    early.record(tmp_path / "late.py", "late")
    (tmp_path / "net.py").rename(tmp_path / "moved.py")
    assert source_of(f"{tmp_path / 'moved.py'}:build").changed_files(early.hashes(), "net.py") == []
    (tmp_path / "late.py").write_text("# edited")
    assert source_of(f"{tmp_path / 'moved.py'}:build").changed_files(early.hashes(), "net.py") == ["late.py"]


def test_a_forged_checkpoint_cannot_refer_to_a_file_outside_the_folder(tmp_path: Path) -> None:
    source = source_of(net(tmp_path / "m", "", "3"))
    before = source.hashes() | {"../secret.py": "0", "/etc/passwd": "0", "a\0b": "0"}
    assert source.changed_files(before, "net.py") == ["../secret.py", "/etc/passwd", "a\0b"]


def test_a_model_of_a_toml_file_is_first_searched_next_to_it(tmp_path: Path) -> None:
    (tmp_path / "net.py").touch()
    assert model_in_toml(tmp_path / "run.toml", "net.py:build") == f"{tmp_path / 'net.py'}:build"
    assert model_in_toml(tmp_path / "run.toml", "missing.py:build") == "missing.py:build"
    assert model_in_toml(tmp_path / "run.toml", "/net.py:build") == "/net.py:build"
    assert model_in_toml(tmp_path / "run.toml", "convnet") == "convnet"


def test_a_missing_file_is_an_error_of_the_command_line(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="there is no Python file"):
        find_architecture(f"{tmp_path}/none.py:build")
    with pytest.raises(UsageError, match="there is no Python file"):
        find_architecture(f"{tmp_path}:build")  # a folder


WAYS = {
    "dptrain": ["DPTRAIN"],
    "python -m dptrain": ["PYTHON", "-m", "dptrain"],
    "python -P -m dptrain": ["PYTHON", "-P", "-m", "dptrain"],
    "mpirun dptrain": ["MPIRUN", "-n", "2", "DPTRAIN"],
    "python -m launch": ["PYTHON", "-m", "launch", "-n", "2", "--max-restarts", "2", "--"],
}


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return packed(tmp_path_factory.mktemp("data") / "set")


def start(way: str, data: Path, folder: Path) -> subprocess.CompletedProcess[str]:
    """Train FOLDER/models/net.py in FOLDER/elsewhere."""
    python = python_of(own_mpi())
    program = folder / "dptrain"  # what pip installs
    program.write_text(f"#!{python}\nimport sys\nfrom dptrain.commands.main import main\nsys.exit(main())\n")
    program.chmod(0o755)
    places = {"DPTRAIN": str(program), "PYTHON": str(python), "MPIRUN": str(python.with_name("mpirun"))}
    words = ["--model", "../models/net.py:build", "--batch-size", "16", "--max-steps", "1", "--run-dir", "run"]
    return subprocess.run(
        [*(places.get(word, word) for word in WAYS[way]), "train", str(data), *words],
        cwd=folder / "elsewhere",
        env={**os.environ, "OMPI_ALLOW_RUN_AS_ROOT": "1", "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1"},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


@pytest.mark.mpi
@pytest.mark.once
@pytest.mark.parametrize("way", WAYS)
def test_every_way_to_start_finds_the_same_neighbours(way: str, data: Path, tmp_path: Path) -> None:
    """Found in the field: a start from another folder, which has a module of the same name."""
    net(tmp_path / "models", "from my_layers import WIDTH", "WIDTH", my_layers="WIDTH = 3")
    net(tmp_path / "elsewhere", "", "3", my_layers="raise SystemError('of the working directory')")
    done = start(way, data, tmp_path)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "elsewhere" / "run" / "model" / "my_layers.py").read_text() == "WIDTH = 3"


@pytest.mark.mpi
@pytest.mark.once
@pytest.mark.parametrize("way", ["python -m dptrain", "python -m launch"])
def test_modules_of_the_working_directory_are_not_found_and_the_launcher_does_not_retry(
    way: str, data: Path, tmp_path: Path
) -> None:
    """Found in the field: `python -m dptrain` did find them, and --max-restarts restarted it, which cannot help."""
    net(tmp_path / "models", "import only_here", "3")
    net(tmp_path / "elsewhere", "", "3", only_here="")
    done = start(way, data, tmp_path)
    assert done.returncode == FAILED
    errors = [line for line in done.stderr.splitlines() if line.startswith("dptrain: error: ")]
    assert len(errors) == 1, done.stderr
    assert "ModuleNotFoundError: No module named 'only_here' (net.py, line 3)" in errors[0]
    assert "attempt 2" not in done.stdout + done.stderr


def test_a_layer_may_import_a_neighbour_while_it_computes(tmp_path: Path) -> None:
    model = net(
        tmp_path,
        "class Late(Linear):\n    def prepare(self, *a):\n        import late\n        return late.x",
        "3",
        late="x = 1",
    )
    layer_class = vars(sys.modules[find_architecture(model).build.__module__])["Late"]
    assert issubclass(layer_class, Layer)
    assert layer_class.prepare(None) == 1
