"""The program as the engine's front end has it: no form is chosen by protocol, and no weight stays opened.

    python benchmarks/secure_stock.py secure party ...

takes part in a session so, with the arguments of `autorep-fx`; all parties have to.
"""

from __future__ import annotations

from autorep_fx.runtime.secure.executables import Compiler
from autorep_fx.runtime.secure.program import JaxProgram
from autorep_fx.runtime.secure.protocols import Settings
from autorep_fx.runtime.secure.public import PublicProgram
from autorep_fx.runtime.secure.simulate import SimulatedSession

__all__ = ["StockSession"]


class _StockProgram(JaxProgram):
    def __init__(self, program: PublicProgram, settings: Settings | None = None) -> None:
        super().__init__(program)


class _StockCompiler(Compiler):
    def __init__(self, program: JaxProgram, settings: Settings) -> None:
        super().__init__(program, settings)
        self.cached = []


class StockSession(SimulatedSession):
    """Simulated parties that run the program so."""

    def _make_compiler(self) -> Compiler:
        self.program = _StockProgram(self.program.public)
        return _StockCompiler(self.program, self.settings)


def main() -> None:
    from autorep_fx.cli import app
    from autorep_fx.runtime.secure import party

    party.JaxProgram, party.Compiler = _StockProgram, _StockCompiler  # type: ignore[misc]
    app()


if __name__ == "__main__":
    main()
