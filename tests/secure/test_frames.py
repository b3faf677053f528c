"""Framing of shares, the engine's profile, and parties.yaml: what does not fit is refused."""

from __future__ import annotations

import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from autorep_fx.errors import ConfigError, PeerError
from autorep_fx.runtime.secure.certificates import fingerprint, make_certificates, sign, verify
from autorep_fx.runtime.secure.frames import frame, unframe
from autorep_fx.runtime.secure.parties import load_parties
from autorep_fx.runtime.secure.profile import Counters, parse_profile
from autorep_fx.runtime.secure.protocols import Settings
from autorep_fx.runtime.secure.slices import Sharing


@pytest.mark.engine
@pytest.mark.parametrize("protocol", ["semi2k", "aby3", "cheetah"])
def test_shares_survive_their_frames(protocol: str) -> None:
    settings = Settings(protocol)
    sharing, value = Sharing(settings), np.linspace(-3, 3, 24, dtype=np.float32).reshape(2, 3, 4)
    shares = sharing.make(value)
    again = [unframe(frame(share), (2, 3, 4), 64, rank) for rank, share in enumerate(shares)]
    assert np.abs(sharing.open(again) - value).max() < 1e-4


def _lie_about_length(content: bytes) -> bytes:
    return content[:12] + struct.pack("<Q", 2**40) + content[20:]


@pytest.mark.engine
@pytest.mark.parametrize(
    "change",
    [
        lambda c: c[:-1], lambda c: c + b"\0", lambda c: b"XXXX" + c[4:], lambda c: c[:10], lambda c: c * 100,
        _lie_about_length, lambda c: c[:4] + struct.pack("<I", 2**31) + c[8:], lambda c: b"",
    ],
    ids=["short", "long", "magic", "head", "huge", "length", "meta", "empty"],
)  # fmt: skip
def test_frames_that_do_not_fit_are_refused(change: Callable[[bytes], bytes]) -> None:
    content = frame(Sharing(Settings("semi2k")).make(np.zeros((2, 3), np.float32))[0])
    with pytest.raises(PeerError, match="Rank 1 sent a share that does not fit"):
        unframe(change(content), (2, 3), 64, 1)


@pytest.mark.engine
def test_a_share_of_another_shape_is_refused() -> None:
    content = frame(Sharing(Settings("semi2k")).make(np.zeros((3, 2), np.float32))[0])
    with pytest.raises(PeerError, match=r"shape \(3, 2\), expected \(2, 3\)"):
        unframe(content, (2, 3), 64, 0)


LOG = """
[x] [Profiling] SPU execution f completed, input processing took 3e-06s, execution took 0.02s
[x] HLO profiling: total time 0.006903552
[x] - pphlo.less, executed 1 times, duration 0.0050s, send bytes 1120 recv bytes 1120, send actions 7, recv actions 7
[x] - pphlo.dot, executed 2 times, duration 1e-05s, send bytes 656 recv bytes 600, send actions 2, recv actions 3
[x] MPC profiling: total time 0.006729351
[x] - msb_a2b, executed 1 times, duration 0.0050s, send bytes 1120 recv bytes 1120, send actions 7, recv actions 7
[x] Link details: total send bytes 1776, recv bytes 1720, send actions 9, recv actions 10
"""


def test_the_profile_is_summed_over_ranks() -> None:
    found = parse_profile(LOG + LOG)
    assert (found.bytes, found.messages, found.ranks) == (3552, 18, 2)
    assert found.operations["pphlo.dot"].calls == 4 and found.operations["pphlo.dot"].messages == 4
    assert found.kernels["msb_a2b"].bytes == 2240
    assert found.operations["pphlo.less"].seconds == pytest.approx(0.01)
    assert set(found.kernels) == {"msb_a2b"}
    again = Counters.from_json(found.to_json())
    assert again.bytes == found.bytes and again.kernels == found.kernels


def _config(folder: Path, change: Callable[[dict[str, Any]], None]) -> Path:
    certificates = make_certificates(folder, ["a", "b"])
    value: dict[str, Any] = {
        "parties": [
            {"role": role, "address": f"127.0.0.1:{9000 + i}", "certificate": path.name, "sha256": fingerprint(path)}
            for i, (role, path) in enumerate(zip(("client", "server"), certificates, strict=True))
        ]
    }
    change(value)
    path = folder / "parties.yaml"
    path.write_text(yaml.safe_dump(value))
    return path


def test_the_default_protocol_follows_from_the_number_of_parties(tmp_path: Path) -> None:
    pytest.importorskip("cryptography", reason="certificates need cryptography")
    config = load_parties(_config(tmp_path, lambda value: None), 0, tmp_path / "a.key")
    assert config.protocol == "cheetah" and config.settings.fraction_bits == 18
    assert config.rank_of("server") == 1 and config.program == tmp_path.resolve() / "program.json"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda v: v.update(protocl="aby3", timeout=-1), "2 problem"),
        (lambda v: v["parties"][1].update(role="helper"), "takes the roles client, server"),
        (lambda v: v["parties"][1].update(address="127.0.0.1:9000"), "two parties have one address"),
        (lambda v: v["parties"][1].update(sha256="0" * 64), "Certificates are not those that are pinned"),
        (lambda v: v["parties"][1].update(certificate="none.pem"), "is no certificate"),
        (lambda v: v.update(parties=[]), "parties"),
    ],
    ids=["keys", "roles", "address", "pin", "missing", "nobody"],
)
def test_parties_that_do_not_fit_are_refused(change: Any, message: str, tmp_path: Path) -> None:
    pytest.importorskip("cryptography", reason="certificates need cryptography")
    with pytest.raises(ConfigError, match=message):
        load_parties(_config(tmp_path, change), 0, tmp_path / "a.key")


def test_a_signature_is_of_one_key_and_one_text(tmp_path: Path) -> None:
    pytest.importorskip("cryptography", reason="certificates need cryptography")
    a, b = make_certificates(tmp_path, ["a", "b"])
    assert (tmp_path / "a.key").stat().st_mode & 0o077 == 0
    signature = sign(b"text", tmp_path / "a.key")
    verify(b"text", signature, a, 0)
    for content, certificate in ((b"other", a), (b"text", b)):
        with pytest.raises(PeerError, match="rank 3 does not hold the key"):
            verify(content, signature, certificate, 3)
