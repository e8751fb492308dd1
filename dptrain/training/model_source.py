"""A user's model file: it is loaded with the modules next to it, and every file that was loaded is recorded.

The modules in the file's folder come before installed ones, as for a script, but not before the standard library,
dptrain and what dptrain needs: a `random.py` in the folder would break the program. The bytes that are recorded are
executed: no .pyc is read or written.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import importlib
import importlib.util
import sys
from collections.abc import Mapping, Sequence
from importlib.machinery import EXTENSION_SUFFIXES, SOURCE_SUFFIXES, ExtensionFileLoader, FileFinder, SourceFileLoader
from pathlib import Path
from types import CodeType, ModuleType
from typing import Any

from dptrain.errors import ModelError, UsageError
from dptrain.system.tracebacks import last_line, place, user_traceback

NEEDED = {"dptrain", "numpy", "h5py", "mpi4py", "threadpoolctl", "rich", "pooch", "tomli_w", "PIL"}
NOT_FROM_THE_FOLDER = NEEDED | sys.stdlib_module_names
INSTALLED = {"site-packages", "dist-packages"}  # below the folder, if that is a home folder with an environment


class ModelSource:
    """Finds a model's modules for Python's import system, and records their files.

    `files` maps names, relative to the model file's folder, to content. `main` is the name of the model file.
    """

    def __init__(self, path: Path) -> None:
        self.main, self.path = path.name, path.resolve()
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

    def find_spec(self, fullname: str, path: Sequence[str] | None = None, target: object = None) -> Any:
        """The spec of a module in the folder, else None; `path` is the folder of its package."""
        if fullname.partition(".")[0] in NOT_FROM_THE_FOLDER:
            return None
        loader: Any = functools.partial(_RecordedLoader, source=self)  # called like the loader's class
        for entry in path if path is not None else [*sys.path, str(self.folder)]:
            folder = Path(entry).resolve()
            if folder.is_relative_to(self.folder) and not INSTALLED & set(folder.relative_to(self.folder).parts):
                finder = FileFinder(str(folder), (loader, SOURCE_SUFFIXES), (ExtensionFileLoader, EXTENSION_SUFFIXES))
                spec = finder.find_spec(fullname)
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

    def changed_files(self, before: Mapping[str, str], main: str) -> list[str]:
        """Names of files that differ from earlier `hashes` of a model whose file was called `main`.

        A file that is not loaded yet is read: it may be imported later. The model file may have another name.
        """
        before = {self.main if name == main else name: digest for name, digest in before.items()}
        now = {name: self._hash_on_disk(name) for name in before} | self.hashes()
        return sorted(name for name in now if before.get(name) != now[name])

    def _hash_on_disk(self, name: str) -> str | None:
        with contextlib.suppress(OSError, ValueError):
            path = (self.folder / name).resolve()
            if path.is_relative_to(self.folder) and path.is_file():
                return hashlib.sha256(path.read_bytes()).hexdigest()
        return None


class _RecordedLoader(SourceFileLoader):
    """Compiles the bytes that are recorded."""

    def __init__(self, name: str, path: str, *, source: ModelSource) -> None:
        super().__init__(name, path)
        self.source = source

    def get_code(self, fullname: str) -> CodeType | None:
        code: CodeType = self.source_to_code(self.source.record(Path(self.path), fullname), self.path)
        return code


_last: list[ModelSource] = []  # the model that was loaded last


def is_model_file(model: str) -> bool:
    """Whether a user's model is FILE.py:FUNCTION, and not MODULE:FUNCTION of a program in Python."""
    return model.rpartition(":")[0].endswith(tuple(SOURCE_SUFFIXES))


def load_model_file(model: str) -> tuple[ModuleType, ModelSource]:
    """Execute the file of FILE.py:FUNCTION as a module.

    UsageError if there is no such file, ModelError with the user's traceback if it fails. Modules of the model that was
    loaded before are removed: two models may have neighbours of the same name, and edited ones are read again.
    """
    written = model.rsplit(":", 1)[0]
    try:
        file = Path(written).expanduser()
        if not file.is_file() or file.suffix not in SOURCE_SUFFIXES:
            raise UsageError(f"--model {model}: there is no Python file {file}")
        source = ModelSource(file)
        name = f"dptrain_model_{file.stem}"  # no other module has this name
        source.record(source.path, name)
    except (OSError, RuntimeError) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        raise UsageError(f"--model {model}: {written} cannot be read: {reason}") from None
    while _last:
        _unload(_last.pop())
    importlib.invalidate_caches()
    _last.append(source)
    sys.meta_path.insert(0, source)
    sys.path.append(str(source.folder))  # for folders without __init__.py, which are packages if nothing else is found
    loader = _RecordedLoader(name, str(source.path), source=source)
    spec = importlib.util.spec_from_file_location(name, source.path, loader=loader)
    assert spec is not None
    # Dataclasses and pickles in the file need the module to be registered.
    module = sys.modules[name] = importlib.util.module_from_spec(spec)
    try:
        loader.exec_module(module)
    except ModelError:
        raise
    except (Exception, SystemExit) as error:
        raise ModelError(f"--model {model}: {describe_error(error, source)}", user_traceback(error)) from error
    return module, source


def _unload(source: ModelSource) -> None:
    with contextlib.suppress(ValueError):  # the user's code may have removed it
        sys.meta_path.remove(source)
    with contextlib.suppress(ValueError):
        sys.path.remove(str(source.folder))
    packages = {name.partition(".")[0] for name in source.modules}
    for name in [name for name in list(sys.modules) if name.partition(".")[0] in packages]:
        del sys.modules[name]


def describe_error(error: BaseException, source: ModelSource | None) -> str:
    """An error in a user's code as one line."""
    if isinstance(error, SystemExit):
        return f"ended the program with status {error.code}{place(error)}"
    if source is not None and isinstance(error, ImportError) and "relative import" in str(error):
        return f"{last_line(error)}; {source.main} is not part of a package: write `import NAME` for NAME.py"
    return last_line(error)


def model_in_toml(toml: Path, model: str) -> str:
    """The model of a TOML file: a relative FILE.py is looked for next to that file, then in the working directory."""
    file, colon, function = model.rpartition(":")
    there = toml.parent / file
    return f"{there}:{function}" if colon and not Path(file).is_absolute() and there.is_file() else model
