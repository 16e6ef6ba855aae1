"""Talking to a running QEMU through its monitor socket (QMP), by the qemu.qmp library."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

from qemu.qmp import QMPClient, QMPError

if TYPE_CHECKING:
    from pathlib import Path

__all__ = ["execute"]

_TIMEOUT_SECONDS = 5


async def _execute(socket: Path, command: str, arguments: dict[str, Any] | None) -> Any:
    client = QMPClient("fleetfoot")
    await client.connect(str(socket))
    try:
        return await client.execute(command, arguments)
    finally:
        await client.disconnect()


def execute(socket: Path, command: str, arguments: dict[str, Any] | None = None) -> Any:
    """Run one QMP command and return its answer.

    Raises:
        OSError: Nobody listens on the socket, or no answer came within 5 s.
        QMPError: QEMU refused the command.
    """
    waiting = asyncio.wait_for(_execute(socket, command, arguments), _TIMEOUT_SECONDS)
    try:
        return asyncio.run(waiting)
    except (EOFError, QMPError) as lost:
        if isinstance(lost, EOFError) or "connection" in str(lost).lower():
            raise ConnectionError(f"{socket}: {lost}") from lost
        raise
