"""Kubeconfigs that name files, so that a renewed certificate is used without a restart."""

from __future__ import annotations

import yaml

__all__ = ["kubeconfig"]


def kubeconfig(server: str, authority: str, pair: str, user: str) -> str:
    """Return a kubeconfig.

    Args:
        server: URL of the apiservers.
        authority: File with the certificate of the servers' authority.
        pair: File with the client's certificate and its key.
        user: What user and context are called.
    """
    cluster = {"server": server, "certificate-authority": authority}
    return yaml.safe_dump(
        {
            "apiVersion": "v1",
            "kind": "Config",
            "clusters": [{"name": "fleetfoot", "cluster": cluster}],
            "users": [{"name": user, "user": {"client-certificate": pair, "client-key": pair}}],
            "contexts": [{"name": user, "context": {"cluster": "fleetfoot", "user": user}}],
            "current-context": user,
        }
    )
