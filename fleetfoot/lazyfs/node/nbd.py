"""Network block devices of the kernel, made and mended through netlink.

Only devices that were made so wait for a new connection when theirs dies (dead connection timeout);
all others fail what is being read at once. A new socket is taken for one that the kernel knows to
be dead, and is silently dropped otherwise. Numbers are those of linux/nbd-netlink.h and of the NBD
protocol (doc/proto.md of the nbd project).
"""

from __future__ import annotations

import errno
import os
import socket
import struct
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path

__all__ = ["Deaths", "Export", "attach", "connect", "detach", "disconnect", "reattach"]

_GENERIC, _CONTROL_ID = 16, 16  # NETLINK_GENERIC, GENL_ID_CTRL
_GET_FAMILY, _FAMILY_ID, _FAMILY_NAME = 3, 1, 2
_REQUEST, _ACK, _ERROR = 1, 4, 2
_CONNECT, _DISCONNECT, _RECONFIGURE, _LINK_DEAD = 1, 2, 3, 4
_GROUPS, _GROUP_ID = 7, 2  # CTRL_ATTR_MCAST_GROUPS, CTRL_ATTR_MCAST_GRP_ID
_NETLINK, _ADD_MEMBERSHIP = 270, 1  # SOL_NETLINK, NETLINK_ADD_MEMBERSHIP
_INDEX, _SIZE, _BLOCK_SIZE, _TIMEOUT, _SERVER_FLAGS, _CLIENT_FLAGS = 1, 2, 3, 4, 5, 6
_SOCKETS, _DEAD_TIMEOUT, _IDENTIFIER = 7, 8, 10
_SOCKET_ITEM, _SOCKET_FD = 1, 1
_NESTED, _TYPE = 0x8000, 0x3FFF
_HEADER = struct.Struct("=IHHII")
_LARGEST = 1 << 16

_MAGIC, _OPTION_MAGIC, _REPLY_MAGIC = 0x4E42444D41474943, 0x49484156454F5054, 0x3E889045565A9
_FIXED, _NO_ZEROES, _GO, _INFO_EXPORT = 1, 2, 7, 0
_ACKNOWLEDGED, _INFORMED, _FAILED = 1, 3, 1 << 31
_BLOCK = 4096


@dataclass(frozen=True)
class Export:
    """What a server offers under a name.

    Attributes:
        size: Bytes.
        flags: Transmission flags, as the kernel wants them.
    """

    size: int
    flags: int


def connect(path: Path, name: str, timeout: float = 10.0) -> tuple[socket.socket, Export]:
    """Open an export of the server behind a Unix socket, up to where the kernel takes over.

    Raises:
        OSError: The server is away, or has no such export.
    """
    connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        connection.settimeout(timeout)
        connection.connect(str(path))
        magic, option, flags = struct.unpack(">QQH", _exactly(connection, 18))
        if (magic, option) != (_MAGIC, _OPTION_MAGIC) or not flags & _FIXED:
            raise OSError(errno.EPROTO, f"{path} is no server of block devices")
        asked = struct.pack(f">I{len(name)}sH", len(name), name.encode(), 0)
        head = struct.pack(">IQII", flags & (_FIXED | _NO_ZEROES), _OPTION_MAGIC, _GO, len(asked))
        connection.sendall(head + asked)
        export = _granted(connection, name)
        connection.settimeout(None)
    except BaseException:
        connection.close()
        raise
    return connection, export


def _granted(connection: socket.socket, name: str) -> Export:
    export = None
    while True:
        magic, _, kind, length = struct.unpack(">QIII", _exactly(connection, 20))
        data = _exactly(connection, length)
        if magic != _REPLY_MAGIC:
            raise OSError(errno.EPROTO, "the server of block devices does not keep to its protocol")
        if kind == _ACKNOWLEDGED and export:
            return export
        if kind & _FAILED:
            raise OSError(
                errno.ENOENT, f"there is no export {name}: {data.decode(errors='replace')}"
            )
        if kind == _INFORMED and struct.unpack_from(">H", data)[0] == _INFO_EXPORT:
            export = Export(*struct.unpack_from(">QH", data, 2))


def _exactly(connection: socket.socket, count: int) -> bytes:
    data = b""
    while len(data) < count:
        piece = connection.recv(count - len(data))
        if not piece:
            raise OSError(errno.ECONNRESET, "the server of block devices closed the connection")
        data += piece
    return data


def attach(connection: socket.socket, export: Export, identifier: str, dead_timeout: int) -> int:
    """Make a device of an export; return its number.

    Args:
        connection: To the server; the kernel keeps it open.
        export: What the server offers.
        identifier: What the device is of: only the same may be given to `reattach`.
        dead_timeout: Seconds for which reads wait for a new connection.

    Raises:
        OSError: The kernel refuses.
    """
    answer = _ask(
        _CONNECT,
        _number(_SIZE, export.size, "Q"),
        _number(_BLOCK_SIZE, _BLOCK, "Q"),
        _number(_SERVER_FLAGS, export.flags, "Q"),
        _number(_CLIENT_FLAGS, 0, "Q"),
        _number(_DEAD_TIMEOUT, dead_timeout, "Q"),
        _attribute(_IDENTIFIER, identifier.encode() + b"\0"),
        _sockets(connection),
    )
    return int(struct.unpack("=I", answer[_INDEX])[0])


def reattach(number: int, connection: socket.socket, identifier: str) -> None:
    """Give a device whose connection is dead a new one.

    Raises:
        OSError: There is no such device, or it is of something else.
    """
    _ask(
        _RECONFIGURE,
        _number(_INDEX, number, "I"),
        _attribute(_IDENTIFIER, identifier.encode() + b"\0"),
        _sockets(connection),
    )


def disconnect(number: int) -> None:
    """Take a device away.

    Raises:
        OSError: The kernel refuses.
    """
    _ask(_DISCONNECT, _number(_INDEX, number, "I"))


def detach(number: int) -> bool:
    """Take a device away; return False while something is mounted from it, or stands on it.

    Raises:
        OSError: The kernel refuses for another reason.
    """
    try:
        # Whoever has it mounted, in whichever namespace, keeps others from having it alone.
        alone = os.open(f"/dev/nbd{number}", os.O_RDONLY | os.O_EXCL | os.O_CLOEXEC)
    except OSError as error:
        if error.errno == errno.EBUSY:
            return False
        raise
    try:
        disconnect(number)
    finally:
        os.close(alone)
    return True


class Deaths:
    """What the kernel tells of connections that died."""

    def __init__(self) -> None:
        self._kernel = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, _GENERIC)
        try:
            self._kernel.bind((0, 0))
            found = _exchange(
                self._kernel, _CONTROL_ID, _GET_FAMILY, _attribute(_FAMILY_NAME, b"nbd\0")
            )
            groups = [_attributes(each) for each in _attributes(found[_GROUPS]).values()]
            (group,) = struct.unpack("=I", groups[0][_GROUP_ID])
            self._kernel.setsockopt(_NETLINK, _ADD_MEMBERSHIP, group)
        except BaseException:
            self._kernel.close()
            raise

    def wait(self) -> int:
        """Wait for a death; return the device's number.

        Raises:
            OSError: Some were lost, for there were more than the kernel keeps.
        """
        while True:
            data = self._kernel.recv(_LARGEST)
            body = data[_HEADER.size :]
            if body[0] == _LINK_DEAD:
                return int(struct.unpack("=I", _attributes(body[4:])[_INDEX])[0])


def _ask(command: int, *attributes: bytes) -> dict[int, bytes]:
    with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, _GENERIC) as kernel:
        kernel.bind((0, 0))
        name = _attribute(_FAMILY_NAME, b"nbd\0")
        found = _exchange(kernel, _CONTROL_ID, _GET_FAMILY, name)
        family = int(struct.unpack("=H", found[_FAMILY_ID])[0])
        return _exchange(kernel, family, command, b"".join(attributes))


def _exchange(kernel: socket.socket, family: int, command: int, payload: bytes) -> dict[int, bytes]:
    body = struct.pack("=BBH", command, 1, 0) + payload
    head = _HEADER.pack(_HEADER.size + len(body), family, _REQUEST | _ACK, 1, 0)
    kernel.send(head + body)
    answer: dict[int, bytes] = {}
    while True:
        data = kernel.recv(_LARGEST)
        while data:
            length, kind, *_ = _HEADER.unpack_from(data)
            message, data = data[_HEADER.size : length], data[(length + 3) & ~3 :]
            if kind == _ERROR:
                code = -struct.unpack_from("=i", message)[0]
                if code:
                    raise OSError(code, f"network block devices: {os.strerror(code)}")
                return answer
            answer.update(_attributes(message[4:]))


def _attributes(data: bytes) -> dict[int, bytes]:
    found = {}
    while len(data) >= 4:  # noqa: PLR2004  # a head: length and type
        length, kind = struct.unpack_from("=HH", data)
        found[kind & _TYPE] = data[4:length]
        data = data[(length + 3) & ~3 :]
    return found


def _attribute(kind: int, content: bytes) -> bytes:
    padding = b"\0" * (-len(content) % 4)
    return struct.pack("=HH", 4 + len(content), kind) + content + padding


def _number(kind: int, value: int, form: str) -> bytes:
    return _attribute(kind, struct.pack(f"={form}", value))


def _sockets(connection: socket.socket) -> bytes:
    item = _attribute(_SOCKET_ITEM | _NESTED, _number(_SOCKET_FD, connection.fileno(), "I"))
    return _attribute(_SOCKETS | _NESTED, item)
