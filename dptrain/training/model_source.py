"""A user's model file: it is loaded with the modules next to it, and every file that was loaded is recorded.

The file is loaded as Python runs a script, in every way of starting: the modules in its folder come before installed
ones. But they do not come before the standard library, dptrain and what dptrain needs: otherwise a `random.py` in the
folder would break the program. No .pyc is read or written: the bytes that are recorded are executed.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import importlib
import importlib.util
import sys
from collections.abc import Mapping, Sequence
from importlib.machinery import (
    EXTENSION_SUFFIXES,
    SOURCE_SUFFIXES,
    ExtensionFileLoader,
    FileFinder,
    ModuleSpec,
    SourceFileLoader,
)
from pathlib import Path
from types import CodeType, ModuleType
from typing import Any

from dptrain.checkpoint.folder import KEPT
from dptrain.errors import ModelError, UsageError
from dptrain.system.tracebacks import last_line, place, user_traceback

NEEDED = {"dptrain", "numpy", "h5py", "mpi4py", "threadpoolctl", "rich", "pooch", "tomli_w"}
NOT_FROM_THE_FOLDER = NEEDED | sys.stdlib_module_names
INSTALLED = {"site-packages", "dist-packages"}  # below the folder, if that is a home folder with an environment


class ModelSource:
    """The files of a model as they were loaded, `files`: name relative to the model file's folder, to content.

    `files` grows when the model imports more while it computes. `main` is the name of the model file.
    """

    def __init__(self, path: Path) -> None:
        self.main = path.name
        self.path = path.resolve()
        self.folder = self.path.parent  # as Python does for a script that is a symbolic link
        self.files: dict[str, bytes] = {}
        self.modules: list[str] = []

    def record(self, path: Path, module: str) -> bytes:
        """The content of a module's file, which is read once."""
        name = self.main if path == self.path else path.relative_to(self.folder).as_posix()
        if name not in self.files:
            self.files[name] = path.read_bytes()
            self.modules.append(module)
        return self.files[name]

    def holds(self, folder: Path) -> bool:
        """Whether modules in this folder are part of the model."""
        return folder.is_relative_to(self.folder) and not INSTALLED & set(folder.relative_to(self.folder).parts)

    def find_spec(
        self, fullname: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        """What Python's import system asks of a finder; `path` is the folder of a package."""
        if fullname.partition(".")[0] in NOT_FROM_THE_FOLDER:
            return None
        for folder in map(Path, path if path is not None else [*sys.path, str(self.folder)]):
            if not self.holds(folder.resolve()):
                continue
            source: Any = functools.partial(_RecordedLoader, source=self)  # called like the loader's class
            loaders = (source, SOURCE_SUFFIXES), (ExtensionFileLoader, EXTENSION_SUFFIXES)
            spec = FileFinder(str(folder.resolve()), *loaders).find_spec(fullname)
            if spec is not None and spec.loader is not None and spec.origin is not None:
                self.record(Path(spec.origin), fullname)
                return spec
        return None

    def hashes(self) -> dict[str, str]:
        """Name to SHA-256, sorted by name."""
        return {name: hashlib.sha256(self.files[name]).hexdigest() for name in sorted(self.files)}

    def loaded(self) -> list[ModuleType]:
        """The modules that were loaded from the files."""
        return [sys.modules[name] for name in self.modules if name in sys.modules]

    def kept_name(self, model: str) -> str:
        """What a configuration in the run folder calls the model FILE.py:FUNCTION: a copy is kept there."""
        return f"{KEPT}/{self.main}:{model.rpartition(':')[2]}"

    def changed_files(self, before: Mapping[str, str], main: str) -> list[str]:
        """Names of files that differ from earlier `hashes` of a model whose file was called `main`.

        A file that is not loaded yet is looked for: it may be imported later. The model file itself may have another
        name.
        """
        before = {self.main if name == main else name: digest for name, digest in before.items()}
        now = self.hashes()
        return [
            name
            for name in sorted(before.keys() | now.keys())
            if before.get(name) != (now.get(name) or self._hash_of_a_neighbour(name))
        ]

    def _hash_of_a_neighbour(self, name: str) -> str | None:
        try:
            path = (self.folder / name).resolve()
            content = path.read_bytes() if path.is_relative_to(self.folder) and path.is_file() else None
        except (OSError, ValueError):
            content = None
        return None if content is None else hashlib.sha256(content).hexdigest()


class _RecordedLoader(SourceFileLoader):
    """Compiles the bytes that are recorded."""

    def __init__(self, name: str, path: str, *, source: ModelSource) -> None:
        super().__init__(name, path)
        self.source = source

    def get_code(self, fullname: str) -> CodeType | None:
        code: CodeType = self.source_to_code(self.source.record(Path(self.path), fullname), self.path)
        return code


_finders: list[ModelSource] = []  # the model that was loaded last


def load_model_file(model: str) -> tuple[ModuleType, ModelSource]:
    """Execute the file of FILE.py:FUNCTION as a module.

    UsageError if there is no such file, ModelError with the user's traceback if it fails. Modules that an earlier
    model has loaded from its folder are forgotten: two models may have neighbours of one name, and edited ones are
    read again.
    """
    written = model.rsplit(":", 1)[0]
    try:
        file = Path(written).expanduser()
        if not file.is_file():
            raise UsageError(f"--model {model}: there is no file {file}")
        if file.suffix not in SOURCE_SUFFIXES:
            raise UsageError(f"--model {model}: {file} is not a Python file")
        source = ModelSource(file)
        # A name that no other module has, registered because dataclasses and pickles in the file need it.
        name = f"dptrain_model_{file.stem}"
        source.record(source.path, name)
    except (OSError, RuntimeError) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        raise UsageError(f"--model {model}: {written} cannot be read: {reason}") from None
    _forget()
    importlib.invalidate_caches()
    _finders.append(source)
    sys.meta_path.insert(0, source)
    sys.path.append(str(source.folder))  # for folders without __init__.py, which are packages if nothing else is found
    loader = _RecordedLoader(name, str(source.path), source=source)
    spec = importlib.util.spec_from_file_location(name, source.path, loader=loader)
    assert spec is not None
    module = sys.modules[name] = importlib.util.module_from_spec(spec)
    try:
        loader.exec_module(module)
    except ModelError:
        raise
    except (Exception, SystemExit) as error:
        raise ModelError(f"--model {model}: {failed(error, source)}", user_traceback(error)) from error
    return module, source


def _forget() -> None:
    for source in _finders:
        with contextlib.suppress(ValueError):  # the user's code may have removed it
            sys.meta_path.remove(source)
        with contextlib.suppress(ValueError):
            sys.path.remove(str(source.folder))
        tops = {name.partition(".")[0] for name in source.modules}
        for name in [name for name in sys.modules if name.partition(".")[0] in tops]:
            del sys.modules[name]
    _finders.clear()


def failed(error: BaseException, source: ModelSource) -> str:
    """What went wrong in a user's code, in a line, with advice where there is any."""
    if isinstance(error, SystemExit):
        return f"ended the program with status {error.code}{place(error)}"
    name = error.name if isinstance(error, ImportError) else getattr(getattr(error, "obj", None), "__name__", None)
    advice = ""
    if isinstance(error, ImportError) and "relative import" in str(error):
        advice = f"; {source.main} is loaded as a script is, not as part of a package: write `import NAME` for NAME.py"
    elif name in NOT_FROM_THE_FOLDER and (source.folder / f"{name}.py").is_file():
        advice = f"; `import {name}` is not the {name}.py next to {source.main}, but the {name} of Python or dptrain"
    return last_line(error) + advice


def model_in_toml(toml: Path, model: str) -> str:
    """The model of a TOML file: a relative FILE.py is looked for next to that file, then in the working directory."""
    file, colon, function = model.rpartition(":")
    there = toml.parent / file
    return f"{there}:{function}" if colon and not Path(file).is_absolute() and there.is_file() else model
