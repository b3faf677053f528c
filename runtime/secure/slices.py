"""One party's part of the engine, and the engine's log."""

from __future__ import annotations

import atexit
import shutil
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from autorep_fx.runtime.feeds import Array
from autorep_fx.runtime.secure.engine import require_spu
from autorep_fx.runtime.secure.executables import Executable
from autorep_fx.runtime.secure.profile import Counters, parse_profile
from autorep_fx.runtime.secure.protocols import Settings

__all__ = ["ENGINE_LOG", "EngineLog", "Sharing", "Slice", "engine_log"]


class EngineLog:
    """The file that the engine logs its counters to; it keeps them all, and no value of any variable."""

    def __init__(self, path: Path) -> None:
        from spu import libspu

        options = libspu.logging.LogOptions()
        options.enable_console_logger = False
        options.system_log_path = str(path)
        options.log_level = libspu.logging.LogLevel.INFO
        libspu.logging.setup_logging(options)
        self.path = path
        self._read = path.stat().st_size if path.exists() else 0

    def new_text(self) -> str:
        """What was logged since the last call."""
        with self.path.open("rb") as file:
            file.seek(self._read)
            content = file.read()
        self._read += len(content)
        return content.decode("utf-8", "replace")

    def counters(self, ranks: int) -> Counters:
        """Counters of the runs since the last call, of ``ranks`` parties.

        Raises:
            RuntimeError: The engine logged other than one run per party.
        """
        found = parse_profile(self.new_text())
        if found.ranks != ranks:
            raise RuntimeError(f"the engine logged {found.ranks} runs, not {ranks}")
        return found


#: Name of the engine's log in a folder of logs.
ENGINE_LOG = "engine.log"
_LOG: list[EngineLog] = []


def engine_log(path: Path | None = None) -> EngineLog:
    """The one log of this process; ``path`` counts for the first call only.

    Unset, it is a temporary file, which is removed when the process ends.
    """
    if not _LOG:
        require_spu()
        if path is None:
            folder = tempfile.mkdtemp(prefix="autorep-spu-")
            atexit.register(shutil.rmtree, folder, ignore_errors=True)
            path = Path(folder) / ENGINE_LOG
        _LOG.append(EngineLog(path))
    return _LOG[0]


def runtime_config(settings: Settings) -> Any:
    """The engine's settings, with its counters switched on.

    Truncation is the engine's default: the local one is wrong for large values.
    """
    from spu import libspu

    config = libspu.RuntimeConfig(
        protocol=getattr(libspu.ProtocolKind, settings.of.kind),
        field=getattr(libspu.FieldType, f"FM{settings.ring_bits}"),
        fxp_fraction_bits=settings.fraction_bits,
    )
    config.enable_hal_profile = True
    config.enable_pphlo_profile = True
    return config


class Sharing:
    """Makes shares of an array, and an array of shares."""

    def __init__(self, settings: Settings) -> None:
        from spu import api, libspu

        self._io = api.Io(settings.of.parties, runtime_config(settings))
        self._secret, self._public = libspu.Visibility.VIS_SECRET, libspu.Visibility.VIS_PUBLIC

    def make(self, value: Array) -> list[Any]:
        """One share per rank, of fixed-point numbers or of integers."""
        dtype = np.float32 if value.dtype.kind == "f" else np.int32
        return list(self._io.make_shares(np.ascontiguousarray(value, dtype=dtype), self._secret))

    def public(self, value: Array) -> Any:
        """A value that every party knows, as each of them holds it."""
        return self._io.make_shares(np.ascontiguousarray(value), self._public)[0]

    def open(self, shares: Sequence[Any]) -> Array:
        """The array of the shares of all ranks."""
        return np.asarray(self._io.reconstruct(list(shares)))


class Slice:
    """One party's runtime over a link, which it keeps for a session."""

    def __init__(self, link: Any, settings: Settings) -> None:
        from spu import api

        self._runtime = api.Runtime(link, runtime_config(settings))
        self._sharing, self._constants = Sharing(settings), set[str]()

    def set(self, name: str, share: Any) -> None:
        """Store a share."""
        self._runtime.set_var(name, share)

    def get(self, name: str) -> Any:
        """This party's share of a variable."""
        return self._runtime.get_var(name)

    def shape(self, name: str) -> list[int]:
        """Shape of a variable."""
        return list(self._runtime.get_var_meta(name).shape.dims)

    def store(self, executable: Executable) -> float:
        """Store a program's constants, those that are not there yet; returns the seconds that it took."""
        start = time.perf_counter()
        for name in executable.constants.keys() - self._constants:
            self.set(name, self._sharing.public(executable.constants[name]))
            self._constants.add(name)
        return time.perf_counter() - start

    def run(self, executable: Executable) -> float:
        """Run a program, whose constants are stored, together with the other parties; returns the seconds it took."""
        start = time.perf_counter()
        self._runtime.run(executable.program)
        return time.perf_counter() - start
