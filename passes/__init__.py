"""Graph-to-graph passes, one file each; :mod:`autorep_fx.passes.infra` holds the contract."""
