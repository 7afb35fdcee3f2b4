"""Keys, certificates and signed tokens for tests, made as they run."""

import json
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import jwt
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.x509.oid import NameOID

AUDIENCE = "heliotrope"


class Issuer:
    """An identity provider with one RSA key."""

    def __init__(self, key_id: str = "k1") -> None:
        self.key = rsa.generate_private_key(public_exponent=65537, key_size=2048)
        self.key_id = key_id

    def jwks(self) -> str:
        public = json.loads(jwt.algorithms.RSAAlgorithm.to_jwk(self.key.public_key()))
        return json.dumps({"keys": [{**public, "kid": self.key_id, "use": "sig", "alg": "RS256"}]})

    def token(self, *, key: Any = None, algorithm: str = "RS256", key_id: str | None = None, **changes: Any) -> str:
        """A token that is good for an hour, with claims changed; None takes one away."""
        now = int(time.time())
        claims = {"sub": "signed", "aud": AUDIENCE, "exp": now + 3600, "iat": now, "scope": "recommend", **changes}
        claims = {name: value for name, value in claims.items() if value is not None}
        headers = {"kid": self.key_id if key_id is None else key_id}
        return jwt.encode(claims, self.key if key is None else key, algorithm=algorithm, headers=headers)


class Authority:
    """Signs certificates for localhost and for clients."""

    def __init__(self, folder: Path) -> None:
        self.path = folder / "authority.pem"
        self._key = ec.generate_private_key(ec.SECP256R1())
        self._name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, f"authority of {folder.name}")])
        self._folder = folder
        certificate = self._built(self._name, self._key.public_key(), authority=True)
        self.path.write_bytes(certificate.public_bytes(serialization.Encoding.PEM))

    def issue(self, name: str) -> tuple[Path, Path]:
        """A certificate with this common name for localhost, and its key; an earlier pair of the name is replaced."""
        key = ec.generate_private_key(ec.SECP256R1())
        subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
        certificate = self._built(subject, key.public_key(), authority=False)
        chain, private = self._folder / f"{name}.pem", self._folder / f"{name}.key"
        pem = (serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
        private.write_bytes(key.private_bytes(*pem))
        chain.write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
        return chain, private

    def _built(self, subject: x509.Name, public: ec.EllipticCurvePublicKey, *, authority: bool) -> x509.Certificate:
        now = datetime.now(UTC)
        builder = (
            x509.CertificateBuilder()
            .subject_name(subject)
            .issuer_name(self._name)
            .public_key(public)
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - timedelta(minutes=5))
            .not_valid_after(now + timedelta(days=1))
            .add_extension(x509.BasicConstraints(ca=authority, path_length=None), critical=True)
        )
        if not authority:
            builder = builder.add_extension(x509.SubjectAlternativeName([x509.DNSName("localhost")]), critical=False)
        return builder.sign(self._key, hashes.SHA256())
