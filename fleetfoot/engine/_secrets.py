"""The passphrase secrets provider, in the CLI's own envelope."""

from __future__ import annotations

import base64
import os
from typing import Final

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.kdf.pbkdf2 import PBKDF2HMAC

from fleetfoot.engine._errors import EngineError

_ITERATIONS: Final = 1_000_000
_CHECK: Final = "pulumi"
_PARTS: Final = 3


class Crypter:
    """Encrypts and decrypts with a key from a passphrase and a salt.

    Args:
        passphrase: As PULUMI_CONFIG_PASSPHRASE gives it to the CLI; it may be empty.
        state: The `v1:salt:check` string of an existing stack, or None for a new one.
    """

    def __init__(self, passphrase: str, state: str | None = None) -> None:
        parts = (state or f"v1:{_b64(os.urandom(8))}:").split(":", 2)
        if len(parts) != _PARTS or parts[0] != "v1":
            raise EngineError(
                f"The salt {state!r} is not of the form v1:salt:check",
                "Secrets of this stack can be neither read nor written",
                "Restore encryptionsalt in the stack's configuration file or its checkpoint",
            )
        kdf = PBKDF2HMAC(hashes.SHA256(), 32, base64.b64decode(parts[1]), _ITERATIONS)
        self._aead = AESGCM(kdf.derive(passphrase.encode()))
        if state is None:
            self.state = f"v1:{parts[1]}:{self.encrypt(_CHECK)}"
            return
        self.state = state
        self.decrypt(parts[2])

    def encrypt(self, text: str) -> str:
        """Seals text as `v1:nonce:ciphertext`."""
        nonce = os.urandom(12)
        return f"v1:{_b64(nonce)}:{_b64(self._aead.encrypt(nonce, text.encode(), None))}"

    def decrypt(self, sealed: str) -> str:
        """Opens what `encrypt` of either engine sealed."""
        parts = sealed.split(":")
        if len(parts) != _PARTS or parts[0] != "v1":
            raise EngineError(
                "A ciphertext is not of the form v1:nonce:ciphertext",
                "The value that it protects cannot be read",
                "Restore the file from a backup",
            )
        nonce, text = (base64.b64decode(part) for part in parts[1:])
        try:
            return self._aead.decrypt(nonce, text, None).decode()
        except InvalidTag as error:
            raise EngineError(
                "A secret does not open with this stack's passphrase and salt",
                "What it protects is unknown, so nothing was done",
                "Set PULUMI_CONFIG_PASSPHRASE (or its _FILE form) to the passphrase that it was "
                "sealed with, or restore the file from a backup",
            ) from error


def _b64(raw: bytes) -> str:
    return base64.b64encode(raw).decode()
