"""``python -m autorep_fx``: the command line."""

from __future__ import annotations

from autorep_fx.cli import main

if __name__ == "__main__":
    main()
