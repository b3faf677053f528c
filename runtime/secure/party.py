"""One party of a session, in a process of its own."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from autorep_fx.errors import ConfigError, PeerError
from autorep_fx.runtime.feeds import Array
from autorep_fx.runtime.secure.engine import require_spu
from autorep_fx.runtime.secure.executables import Compiler, Executable, input_name, output_name, weight_name
from autorep_fx.runtime.secure.frames import frame, unframe
from autorep_fx.runtime.secure.link import Link
from autorep_fx.runtime.secure.parties import PartiesConfig
from autorep_fx.runtime.secure.profile import Counters, total
from autorep_fx.runtime.secure.program import JaxProgram
from autorep_fx.runtime.secure.public import load_program
from autorep_fx.runtime.secure.results import SecureRun, Step, comparisons_of
from autorep_fx.runtime.secure.run import check_dealer
from autorep_fx.runtime.secure.slices import ENGINE_LOG, Sharing, Slice, engine_log
from autorep_fx.runtime.secure.split import load_weights
from autorep_fx.versions import installed

__all__ = ["NATIVE_LOG", "Party"]

#: Name of what the engine's C++ prints, beside its log.
NATIVE_LOG = "native.log"

logger = logging.getLogger(__name__)
_MOST_QUERIES, _MOST_ELEMENTS = 10_000, 2**31


class Party:
    """What one party does, from the exchange of digests to the last query.

    Args:
        config: The parties.
        rank: The own rank.
        key: The own private key, a PEM file.
        weights: Weights file; for the server, and for nobody else.
        queries: Inputs per query; for the client, and for nobody else.
        insecure_dealer: Take part although the protocol's dealer is not secure.
        log: Folder of the engine's raw logs, ``engine.log`` and ``native.log``; a temporary one if it is unset.

    Raises:
        ConfigError: Files do not fit the role.
        ProtocolError: The dealer is not secure.
        SecureProgramError: Program or weights cannot be used.
        DataError: The inputs do not fit.
    """

    def __init__(
        self, config: PartiesConfig, rank: int, key: Path, *, weights: Path | None = None,
        queries: Sequence[Sequence[Array]] | None = None, insecure_dealer: bool = False,
        log: Path | None = None,
    ) -> None:  # fmt: skip
        require_spu()
        self.config, self.rank, self.settings = config, rank, config.settings
        self.role = config.parties[rank].role
        self._key, self._folder = key, log
        check_dealer(self.settings, insecure_dealer=insecure_dealer)
        self._check_files(weights, queries)
        public = load_program(config.program)
        self.program = JaxProgram(public, self.settings)
        self.compiler = Compiler(self.program, self.settings)
        self._weights = None if weights is None else self.program.lay_out(load_weights(weights, public))
        self._queries = None if queries is None else [self.program.feed(*query) for query in queries]

    def _check_files(self, weights: Path | None, queries: Any) -> None:
        for role, what, given in (("server", "weights", weights), ("client", "an input", queries)):
            if (given is not None) != (self.role == role):
                raise ConfigError(
                    f"The {role} has {what}, and nobody else.",
                    received=f"rank {self.rank} is the {self.role}, with{'' if given is not None else 'out'} {what}",
                    fix=f"Pass --{'weights' if role == 'server' else 'input'} for the {role} only.",
                )

    def run(self) -> SecureRun:
        """Take part in a session.

        Returns:
            What it cost; the outputs too, for the client.

        Raises:
            PeerError: A party is not who it should be, runs something else, or is gone.
        """
        folder = self._folder
        self._log = engine_log(None if folder is None else folder / ENGINE_LOG)
        self._sharing = Sharing(self.settings)
        logs = [self._log.path, self._log.path.with_name(NATIVE_LOG)]
        self._link = Link(self.config, self.rank, self._key, logs)
        self._link.authenticate(self._facts())
        logger.info("Rank %d: all parties hold their keys and run one program", self.rank)
        shapes = self._plan()
        setup = self.compiler.setup()
        executables = [self.compiler.query(query) for query in shapes]
        self._agree([e.digest for e in ([setup] if setup else []) + executables])
        with self._link.guarded():
            self._slice = Slice(self._link.context, self.settings)
        first, seen = self._run_setup(setup), set()
        steps, outputs, by_rank = [], [], [Counters()] * self.settings.of.parties
        for number, executable in enumerate(executables):
            values = self._queries[number] if self._queries is not None else None
            sent = self._share("client", shapes[number], values, input_name)
            self._execute(executable)
            opened, returned = self._open()
            step, ranks = self._account(executable, sent + returned, compiled=id(executable) not in seen)
            seen.add(id(executable))
            steps.append(step)
            outputs.append(opened)
            by_rank = [a + b for a, b in zip(by_rank, ranks, strict=True)]
            logger.info("Rank %d: query %d of %d took %.3f s", self.rank, number + 1, len(executables), step.seconds)
        self._link.gather_json("done")
        self._link.close()
        notes = [f"figures are {self.settings.of.caveat}"] if self.settings.of.caveat else []
        stacked = tuple(np.concatenate(parts) for parts in zip(*outputs, strict=True)) if self.role == "client" else ()
        return SecureRun(
            "execute", self.settings, sum(query[0][0] for query in shapes), stacked, first, steps,
            self.program.public.leaks, [{"bytes": c.bytes, "messages": c.messages} for c in by_rank], notes=notes,
        )  # fmt: skip

    def _facts(self) -> dict[str, str]:
        versions = installed(("spu", "jax", "autorep-fx"))
        return {
            "program SHA-256": self.program.public.digest,
            "settings SHA-256": self.settings.digest,
            **{f"version of {name}": version for name, version in versions.items()},
        }

    def _plan(self) -> list[list[tuple[int, ...]]]:
        """Shapes of all queries, which the client says."""
        mine = None if self._queries is None else [[list(v.shape) for v in query] for query in self._queries]
        client = self.config.rank_of("client")
        said = self._link.gather_json(mine)[client]
        try:
            shapes = [[tuple(int(size) for size in shape) for shape in query] for query in said]
            fits = 0 < len(shapes) <= _MOST_QUERIES and all(
                min(shape) > 0 and np.prod(shape, dtype=float) <= _MOST_ELEMENTS for query in shapes for shape in query
            )
        except (TypeError, ValueError):
            fits = False
        if not fits:
            raise PeerError(
                f"The client (rank {client}) asks for queries that cannot be.", fix="Start it with an input that fits."
            )
        for query in shapes:
            self.program.check_shapes(query)
        return shapes

    def _agree(self, digests: list[str]) -> None:
        """Refuse engines that compile one program differently."""
        for rank, theirs in enumerate(self._link.gather_json(digests)):
            if theirs != digests:
                raise PeerError(
                    f"Rank {rank} compiled the program to something else.",
                    fix="Use the same versions of jax and spu at all parties.",
                )

    def _run_setup(self, executable: Executable | None) -> Step:
        sent = self._share(
            "server", [spec.shape for spec in self.compiler.parameter_specs()], self._weights, weight_name
        )
        if executable is not None:
            self._execute(executable)
        return self._account(executable, sent, compiled=executable is not None)[0]

    def _share(self, role: str, shapes: Sequence[tuple[int, ...]], values: Sequence[Array] | None, name: Any) -> int:
        """Hand out shares of what one role has; returns the bytes that this party sent."""
        owner, sent = self.config.rank_of(role), 0
        for index, shape in enumerate(shapes):
            if values is None:
                share = unframe(self._link.receive(owner), shape, self.settings.ring_bits, owner)
            else:
                shares = self._sharing.make(values[index])
                for rank, other in enumerate(shares):
                    if rank != self.rank:
                        content = frame(other)
                        sent += len(content)
                        self._link.send(rank, content)
                share = shares[self.rank]
            self._slice.set(name(index), share)
        return sent

    def _execute(self, executable: Executable) -> None:
        self._log.new_text()
        self._stored = self._slice.store(executable)
        with self._link.guarded():
            self._seconds = self._slice.run(executable)

    def _open(self) -> tuple[tuple[Array, ...], int]:
        """Outputs, at the client; everyone else sends a share, and learns nothing."""
        client, opened, sent = self.config.rank_of("client"), [], 0
        for index in range(len(self.program.public.outputs)):
            share = self._slice.get(output_name(index))
            if self.rank != client:
                content = frame(share)
                sent += len(content)
                self._link.send(client, content)
                continue
            shape = tuple(self._slice.shape(output_name(index)))
            shares = [
                share if rank == client else unframe(self._link.receive(rank), shape, self.settings.ring_bits, rank)
                for rank in range(self.settings.of.parties)
            ]
            opened.append(self._sharing.open(shares))
        return tuple(opened), sent

    def _account(self, executable: Executable | None, sent: int, *, compiled: bool) -> tuple[Step, list[Counters]]:
        """Sum what all ranks counted."""
        mine = Counters() if executable is None else self._log.counters(1)
        seconds = 0.0 if executable is None else self._seconds
        parts = self._link.gather_json({"counters": mine.to_json(), "seconds": seconds, "sent": sent})
        try:
            ranks = [Counters.from_json(part["counters"]) for part in parts]
            slowest, travelled = max(float(part["seconds"]) for part in parts), sum(int(part["sent"]) for part in parts)
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise PeerError("A party sent counters that cannot be read.", received=type(error).__name__) from error
        counters = total(ranks)
        expected = 0 if executable is None else executable.comparisons
        comparisons = comparisons_of(counters, self.settings, expected)
        compile_seconds = executable.seconds + self._stored if executable is not None and compiled else 0.0
        return Step(counters, slowest, compile_seconds, comparisons, travelled), ranks
