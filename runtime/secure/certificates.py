"""Certificates of parties: fingerprints, and signatures that bind a rank to its certificate."""

from __future__ import annotations

import datetime
import hashlib
import ipaddress
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from autorep_fx.errors import ConfigError, EngineMissingError, PeerError
from autorep_fx.files import atomic_path, output_directory

__all__ = ["check_pair", "fingerprint", "make_certificates", "sign", "verify"]

_FIX = "pip install 'autorep-fx[secure]', which brings cryptography."


def _cryptography() -> Any:
    try:
        import cryptography.x509
    except ImportError as error:
        raise EngineMissingError(
            "Certificates need the package cryptography.", received=str(error), fix=_FIX
        ) from error
    return cryptography


def make_certificates(folder: Path | str, names: Sequence[str], *, days: int = 30) -> list[Path]:
    """Make a self-signed test certificate and a private key (P-256) per name: ``NAME.pem`` and ``NAME.key``.

    They are for tests and trials: the keys are not encrypted, and all lie in one folder.

    Returns:
        Paths of the certificates.

    Raises:
        EngineMissingError: The package cryptography is not there.
        OutputError: The folder cannot be written.
    """
    _cryptography()
    from cryptography.hazmat.primitives.asymmetric import ec
    from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

    folder = output_directory(folder)
    result = []
    for name in names:
        key = ec.generate_private_key(ec.SECP256R1())
        paths = folder / f"{name}.pem", folder / f"{name}.key"
        contents = (
            _self_signed(name, key, days).public_bytes(Encoding.PEM),
            key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()),
        )
        for path, content in zip(paths, contents, strict=True):
            with atomic_path(path) as temporary:
                temporary.write_bytes(content)
        paths[1].chmod(0o600)
        result.append(paths[0])
    return result


def _self_signed(name: str, key: Any, days: int) -> Any:
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes
    from cryptography.x509.oid import NameOID

    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    now = datetime.datetime.now(datetime.UTC)
    hosts = [x509.DNSName("localhost"), x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]
    builder = x509.CertificateBuilder().subject_name(subject).issuer_name(subject).public_key(key.public_key())
    builder = builder.serial_number(x509.random_serial_number())
    builder = builder.not_valid_before(now - datetime.timedelta(minutes=5))
    builder = builder.not_valid_after(now + datetime.timedelta(days=days))
    builder = builder.add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
    return builder.add_extension(x509.SubjectAlternativeName(hosts), critical=False).sign(key, hashes.SHA256())


def _load(path: Path) -> Any:
    _cryptography()
    from cryptography import x509

    try:
        return x509.load_pem_x509_certificate(path.read_bytes())
    except (OSError, ValueError) as error:
        raise ConfigError(
            f"{path} is no certificate.", received=str(error).splitlines()[0],
            fix="Pass a PEM file; `autorep-fx secure certs` makes some for tests.",
        ) from error  # fmt: skip


def fingerprint(path: Path) -> str:
    """SHA-256 of a certificate in DER, in hexadecimal.

    Raises:
        ConfigError: The file is no certificate.
    """
    from cryptography.hazmat.primitives.serialization import Encoding

    return hashlib.sha256(_load(path).public_bytes(Encoding.DER)).hexdigest()


def _private_key(path: Path) -> Any:
    from cryptography.hazmat.primitives.serialization import load_pem_private_key

    try:
        return load_pem_private_key(path.read_bytes(), None)
    except (OSError, ValueError, TypeError) as error:  # the file's content is never quoted
        raise ConfigError(
            f"{path} is no private key that can be read.", received=type(error).__name__,
            fix="Pass the PEM file of the key that belongs to this rank's certificate, without a password.",
        ) from error  # fmt: skip


def check_pair(certificate: Path, key: Path) -> None:
    """Refuse a key of another certificate.

    Raises:
        ConfigError: It is one, or a file cannot be read.
    """
    from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

    form = Encoding.DER, PublicFormat.SubjectPublicKeyInfo
    if _load(certificate).public_key().public_bytes(*form) != _private_key(key).public_key().public_bytes(*form):
        raise ConfigError(
            f"The key {key} does not belong to this rank's certificate.", received=str(certificate),
            fix="Pass --rank and --key of one party.",
        )  # fmt: skip


def sign(content: bytes, key: Path) -> bytes:
    """An ECDSA signature over SHA-256."""
    from cryptography.hazmat.primitives import hashes
    from cryptography.hazmat.primitives.asymmetric import ec

    return bytes(_private_key(key).sign(content, ec.ECDSA(hashes.SHA256())))


def verify(content: bytes, signature: bytes, certificate: Path, rank: int) -> None:
    """Check that the holder of a certificate's key signed ``content``.

    Raises:
        PeerError: It did not.
    """
    from cryptography.exceptions import InvalidSignature
    from cryptography.hazmat.primitives import hashes
    from cryptography.hazmat.primitives.asymmetric import ec

    try:
        _load(certificate).public_key().verify(signature, content, ec.ECDSA(hashes.SHA256()))
    except InvalidSignature as error:
        raise PeerError(
            f"Whoever takes part as rank {rank} does not hold the key of that rank's pinned certificate.",
            received=f"a signature that {certificate.name} did not make",
            fix="Start every party with its own --rank and --key. If that is so, someone else is on the line.",
        ) from error
