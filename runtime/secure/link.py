"""The link between parties: mutual TLS by SPU, and who is at its other ends."""

from __future__ import annotations

import hashlib
import json
import re
import secrets
import tempfile
import threading
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

from autorep_fx.errors import PeerError
from autorep_fx.runtime.secure.certificates import sign, verify
from autorep_fx.runtime.secure.native_output import refused_certificates
from autorep_fx.runtime.secure.parties import PartiesConfig

__all__ = ["Link", "lost_party"]

_DOMAIN = b"autorep-fx secure session 1\n"
_MAX_HELLO = 4096
_SILENT = re.compile(r"(\d+)->(\d+)")


class Link:
    """A connection of all parties, over TCP with mutual TLS.

    TLS takes any of the pinned certificates, and no other; it does not say which rank holds which. So every party then
    signs what all parties said, fresh random numbers of each among it, and its rank, with its certificate's key.

    Args:
        config: The parties.
        rank: The own rank.
        key: The own private key, a PEM file.
        logs: Files with what the engine says; they tell whether TLS refused a certificate.

    Raises:
        PeerError: A party cannot be reached within the timeout, or its certificate is not a pinned one.
    """

    def __init__(self, config: PartiesConfig, rank: int, key: Path, logs: Sequence[Path] = ()) -> None:
        self.config, self.rank, self._key = config, rank, key
        try:
            self.context = _within(config.start_timeout, lambda: _connect(config, rank, key))
        except Exception as error:  # the engine's own type
            refused = "; TLS refused a certificate that is not pinned" if refused_certificates(logs) else ""
            raise PeerError(
                "Not all parties could be reached.",
                received=f"{_line(error)}, within {config.start_timeout:g} s{refused}",
                fix="Start all parties, at the addresses in parties.yaml, each with the certificate that is pinned "
                "for its rank; a party whose certificate is not pinned is not let in.",
            ) from error

    def authenticate(self, facts: Mapping[str, str]) -> None:
        """Bind every rank to its certificate, then compare what each party is about to run.

        Args:
            facts: What has to be the same at all parties, by name.

        Raises:
            PeerError: A party does not hold its rank's key, or differs in a fact; all differences are listed.
        """
        hello = {"rank": self.rank, "nonce": secrets.token_hex(32), "facts": dict(facts)}
        hellos = self.gather(json.dumps(hello).encode(), limit=_MAX_HELLO)
        transcript = hashlib.sha256(_DOMAIN + b"".join(hashlib.sha256(text).digest() for text in hellos)).digest()
        signatures = self.gather(sign(transcript + bytes([self.rank]), self._key), limit=_MAX_HELLO)
        for rank, party in enumerate(self.config.parties):
            verify(transcript + bytes([rank]), signatures[rank], party.certificate, rank)
        problems = []
        for rank, text in enumerate(hellos):
            said = _parse(text, rank)
            if said.get("rank") != rank:
                problems.append(f"rank {rank} says that it is rank {said.get('rank')!r}")
            theirs = said.get("facts")
            for name, mine in facts.items():
                found = theirs.get(name) if isinstance(theirs, dict) else None
                if found != mine:
                    problems.append(
                        f"rank {rank} ({self.config.parties[rank].role}) has {name} {found!r}, here {mine!r}"
                    )
        if problems:
            raise PeerError(
                "The parties are about to run different things:\n  " + "\n  ".join(problems),
                fix="Give every party the same program.json, parties.yaml and versions. If a file was changed on its "
                "way, do not run it.",
            )

    def gather(self, content: bytes, *, limit: int) -> list[bytes]:
        """What every party sends, in the order of ranks.

        Raises:
            PeerError: A party is gone or too slow, or sends more than ``limit`` bytes.
        """
        with self.guarded():
            texts = self.context.all_gather(content.hex())  # the engine's binding makes text of what it gathers
        try:
            found = [bytes.fromhex(text) for text in texts]
        except ValueError as error:
            raise PeerError("A party sent what is no message of this program.") from error
        for rank, text in enumerate(found):
            if len(text) > limit:
                raise PeerError(f"Rank {rank} sent {len(text):,} bytes where at most {limit:,} were expected.")
        return found

    def gather_json(self, value: Any, *, limit: int = 2**20) -> list[Any]:
        """The same for values that JSON has."""
        return [_parse(text, rank) for rank, text in enumerate(self.gather(json.dumps(value).encode(), limit=limit))]

    def send(self, rank: int, content: bytes) -> None:
        """Send bytes to one party."""
        with self.guarded():
            self.context.send(rank, content)

    def receive(self, rank: int) -> bytes:
        """Bytes that one party sent."""
        with self.guarded():
            return bytes(self.context.recv(rank))

    def guarded(self) -> _Guard:
        """A block in which an error of the engine means that a party is gone."""
        return _Guard(self)

    def close(self) -> None:
        """End the link, after all parties came here."""
        self.context.stop_link()


def lost_party(timeout: float, received: str, who: str = "A party") -> PeerError:
    """What a party says when another does not answer; ``timeout`` in seconds."""
    return PeerError(
        f"{who} is gone, or did not answer within {timeout:g} s.",
        received=received,
        fix="See that party's own message; allow more time with `timeout` in parties.yaml if it is only slow. "
        "The session is over: start all parties again.",
    )


class _Guard:
    def __init__(self, link: Link) -> None:
        self._link = link

    def __enter__(self) -> None:
        return None

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if isinstance(error, UnicodeDecodeError):
            raise PeerError("A party sent what is no message of this program.") from error
        if not isinstance(error, RuntimeError):  # what the engine raises
            return
        text = _line(error)
        found = _SILENT.search(text)
        who = f"Rank {found[1]} ({self._role(int(found[1]))})" if found else "A party"
        raise lost_party(self._link.config.timeout, text, who) from error

    def _role(self, rank: int) -> str:
        parties = self._link.config.parties
        return parties[rank].role if rank < len(parties) else "unknown"


def _within(seconds: float, function: Callable[[], Any]) -> Any:
    """The function's result, if it is there in time; the engine's own retries wait for each attempt's own timeout.

    Raises:
        TimeoutError: It is not; the function goes on, in a thread that ends with the process.
    """
    results: list[Any] = []
    failures: list[BaseException] = []

    def work() -> None:
        try:
            results.append(function())
        except BaseException as error:
            failures.append(error)

    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    thread.join(seconds)
    if failures:
        raise failures[0]
    if not results:
        raise TimeoutError("no answer")
    return results[0]


def _connect(config: PartiesConfig, rank: int, key: Path) -> Any:
    from spu import libspu

    description = libspu.link.Desc()
    description.id = config.session
    for index, party in enumerate(config.parties):
        description.add_party(f"rank-{index}", party.address)
    milliseconds = max(int(config.timeout * 1000), 1)
    description.recv_timeout_ms = milliseconds
    description.http_timeout_ms = milliseconds
    description.connect_retry_interval_ms = 200
    description.connect_retry_times = int(config.start_timeout / 0.2) + 1
    description.enable_ssl = True
    with tempfile.TemporaryDirectory(prefix="autorep-tls-") as folder:
        pinned = Path(folder) / "pinned.pem"
        others = [p.certificate.read_text() for p in config.parties]
        pinned.write_text("".join(others))
        for options in (description.client_ssl_opts, description.server_ssl_opts):
            options.cert.certificate_path = str(config.parties[rank].certificate)
            options.cert.private_key_path = str(key)
            options.verify.verify_depth = 1
            options.verify.ca_file_path = str(pinned)
        return libspu.link.create_brpc(description, rank)


def _parse(text: bytes, rank: int) -> Any:
    try:
        return json.loads(text)
    except ValueError as error:
        raise PeerError(
            f"Rank {rank} sent what is no message of this program.", received=f"{len(text)} bytes"
        ) from error


def _line(error: BaseException) -> str:
    text = str(error).strip()
    return text.splitlines()[0] if text else type(error).__name__
