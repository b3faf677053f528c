"""Execution time of real parties over shaped links: compiled models against stock, and latency against messages.

    python benchmarks/secure_link.py --model lenet --protocol semi2k --links loopback 100Mbps,40ms --queries 3
    python benchmarks/secure_link.py --model lenet --forms quadratic --links 10Gbps,0ms 10Gbps,20ms 10Gbps,40ms

One process per party on this machine, over mutual TLS. On every link but `loopback` each party reaches every other
through a relay of its own (`link_proxy.py`): its `parties.yaml` names the relay's port for the others. Forms are those
of `secure.py`. The first query is left out. Rows go to the results of `secure.py`.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import socket
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from itertools import permutations
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from secure_report import RESULTS, conditions, have, keep, limited, write_table

from autorep_fx.runtime.secure.execute import Prepared, prepare_parties
from autorep_fx.runtime.secure.protocols import Settings
from autorep_fx.runtime.secure.split import split_model
from secure import FORMS, MODELS, PROTOCOLS, exported

HERE = Path(__file__).parent


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="lenet", choices=list(MODELS))
    parser.add_argument("--forms", nargs="+", default=["stock", "quadratic", "linear"], choices=FORMS)
    parser.add_argument("--protocol", default="semi2k", choices=PROTOCOLS)
    parser.add_argument("--links", nargs="+", default=["loopback", "100Mbps,40ms"])
    parser.add_argument("--queries", type=int, default=3, help="queries that are timed, after the first")
    parser.add_argument("--timeout", type=float, default=600.0, help="seconds that a party waits for a message")
    parser.add_argument("--work", type=Path, default=Path("build/secure"))
    parser.add_argument("--again", action="store_true", help="run rows anew that are there")
    parser.add_argument("--out", type=Path, default=RESULTS)
    options = parser.parse_args()
    limited()
    for link in options.links:
        for form in options.forms:
            key = {"model": options.model, "form": form, "protocol": options.protocol, "link": link}
            if not options.again and have(options.out, key):
                continue
            row = {**key, **timed(link, form, options), **conditions()}
            keep(options.out, row)
            print({name: row[name] for name in (*key, "seconds", "messages_of_one")}, file=sys.stderr)
    print(write_table(options.out))


def timed(link: str, form: str, options: argparse.Namespace) -> dict[str, Any]:
    """Start all parties once, and run the queries."""
    path = exported(options.model, form, options.work)
    settings, shape = Settings(options.protocol), MODELS[options.model][1]
    x = np.random.default_rng(0).standard_normal((options.queries + 1, *shape)).astype(np.float32)
    with tempfile.TemporaryDirectory() as name, contextlib.ExitStack() as stack:
        prepared = prepare_parties(split_model(path), [x], settings, Path(name), timeout=options.timeout)
        configs = [prepared.config] * len(prepared.roles)
        if link != "loopback":
            configs = stack.enter_context(relayed(prepared, link))
        run_parties(prepared, configs, form, options.timeout)
        value = json.loads((Path(name) / f"result-{prepared.roles.index('client')}.json").read_text())
    later = value["queries"][1:]
    seconds = [query["seconds"] for query in later]
    return {
        "seconds": statistics.median(seconds), "all_seconds": seconds, "n": len(later),
        "first_query_seconds": value["queries"][0]["seconds"], "bytes": later[-1]["bytes"],
        "messages": later[-1]["messages"], "comparisons": later[-1]["comparisons"],
        "messages_of_one": max(rank["messages"] for rank in value["by_rank"]) // len(value["queries"]),
        "load": os.getloadavg()[0],
    }  # fmt: skip


@contextlib.contextmanager
def relayed(prepared: Prepared, link: str) -> Iterator[list[Path]]:
    """A relay for every ordered pair of parties; gives each party's own `parties.yaml`."""
    config = yaml.safe_load(prepared.config.read_text())
    parties = config["parties"]
    ports = {rank: int(party["address"].rpartition(":")[2]) for rank, party in enumerate(parties)}
    pairs = list(permutations(ports, 2))
    listen = dict(zip(pairs, _free_ports(len(pairs)), strict=True))
    relay = subprocess.Popen(
        [sys.executable, str(HERE / "link_proxy.py"), "--link", link,
         *(f"{listen[pair]}:{ports[pair[1]]}" for pair in pairs)],
        stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    try:
        assert relay.stdout is not None
        if relay.stdout.readline().strip() != "ready":
            raise RuntimeError(f"The relay of {link} did not start.")
        written = []
        for own in ports:
            others = [
                {**party, "address": f"127.0.0.1:{listen[own, rank]}"} if rank != own else party
                for rank, party in enumerate(parties)
            ]
            written.append(prepared.folder / f"parties-{own}.yaml")
            written[-1].write_text(yaml.safe_dump({**config, "parties": others}))
        yield written
    finally:
        relay.kill()
        relay.wait()


def run_parties(prepared: Prepared, configs: list[Path], form: str, timeout: float) -> None:
    """Start one process per party and wait for all."""
    program = [str(HERE / "secure_stock.py")] if form == "stock" else ["-m", "autorep_fx"]
    processes = []
    for rank, config in enumerate(configs):
        arguments = prepared.arguments(rank, batch=1, insecure_dealer=True)
        arguments[arguments.index("--config") + 1] = str(config)
        command = [sys.executable, *program, *arguments]
        processes.append(subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True))
    try:
        errors = [process.communicate(timeout=10 * timeout)[1] for process in processes]
    finally:
        for process in processes:
            process.kill()
    if any(process.returncode for process in processes):
        raise RuntimeError("A party failed:\n" + "\n".join(errors))


def _free_ports(count: int) -> list[int]:
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [int(item.getsockname()[1]) for item in sockets]
    for item in sockets:
        item.close()
    return ports


if __name__ == "__main__":
    main()
