"""Asking an apiserver from the machine of a role's test."""

from __future__ import annotations

from typing import Any

_PROGRAM = """import ssl, sys, urllib.error as e, urllib.request as u
c = ssl.create_default_context(cafile="/etc/kubernetes/pki/ca.crt")
if len(sys.argv) > 2: c.load_cert_chain(sys.argv[2], sys.argv[3])
try: r = u.urlopen(sys.argv[1], context=c, timeout=10); print(r.status, r.read().decode())
except e.HTTPError as x: print(x.code)"""


def ask(host: Any, port: int, path: str, pair: str = "") -> str:
    """Return status and, if it was granted, body.

    Args:
        host: Testinfra's.
        port: The apiserver's, on the machine's own address.
        path: What is asked for.
        pair: Certificate and key to show, by their path without `.crt` and `.key`; else none.
    """
    address = host.ansible.get_variables()["ansible_host"]
    shown = f" {pair}.crt {pair}.key" if pair else ""
    said: str = host.check_output(f"python3 -c '{_PROGRAM}' https://{address}:{port}{path}{shown}")
    return said
