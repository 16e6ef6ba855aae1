"""Types of single values in the stack's configuration; each refusal says what would follow."""

from __future__ import annotations

import ipaddress
import re
from typing import Annotated, Literal, get_args

from pydantic import AfterValidator, BeforeValidator
from pydantic_core import PydanticCustomError

from fleetfoot.machines.spec import IDLE
from fleetfoot.stack.sides import OFFLINE_OBJECTS

__all__ = [
    "GROUPS",
    "LABEL",
    "WEIGHT",
    "Group",
    "Held",
    "Label",
    "Resource",
    "Size",
    "Subnet",
    "Taint",
    "Weight",
]

_Group = Literal[
    "etcd",
    "etcd_events",
    "apiserver_online",
    "apiserver_offline",
    "kube_control",
    "dns",
    "registry",
    "load_balancer",
    "workers",
]
GROUPS: tuple[str, ...] = get_args(_Group)
_SIZE = re.compile(r"(\d+(?:\.\d+)?)\s*(MiB|GiB)")
_MIB = {"MiB": 1, "GiB": 1024}
#: A DNS label, as names of machines and namespaces are.
LABEL = r"[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?"
WEIGHT, _MOST_WEIGHT, _IDLE = 100, 10_000, "idle"  # systemd's own


def _refuse(message: str) -> PydanticCustomError:
    return PydanticCustomError("fleetfoot", "{message}", {"message": message})


def _matching(pattern: str, otherwise: str) -> AfterValidator:
    """Refuse strings that are not as a whole as a pattern says, and tell what they are not."""
    whole = re.compile(pattern)

    def check(value: str) -> str:
        if not whole.fullmatch(value):
            raise _refuse(f"{value!r} is no {otherwise}")
        return value

    return AfterValidator(check)


def _group(value: object) -> object:
    if value == "kube_apiserver":
        raise _refuse(
            "'kube_apiserver' is both groups of apiservers, so nobody could tell whose clients the"
            " machines take; write apiserver_online, apiserver_offline, or both"
        )
    return value


def _held(value: str) -> str:
    known = ("pods", *OFFLINE_OBJECTS)
    if value not in known:
        raise _refuse(
            f"{value!r} is nothing that submitters may make, so nothing would be bounded; write one"
            f" of {', '.join(known)}"
        )
    return value


def _size(value: object) -> int:
    found = _SIZE.fullmatch(value) if isinstance(value, str) else None
    if not found:
        raise _refuse(
            f"{value!r} is no size, so nothing could be allotted; write a number with its unit,"
            " such as 512MiB or 2GiB"
        )
    return int(float(found[1]) * _MIB[found[2]])


def _subnet(value: str) -> str:
    try:
        return str(ipaddress.IPv4Network(value))
    except ValueError as wrong:
        raise _refuse(
            f"{value!r} is no IPv4 range ({wrong}), so no address could be given; write one such"
            " as 10.89.0.0/24"
        ) from wrong


def _weight(value: object) -> int:
    if value == _IDLE:
        return IDLE
    if not isinstance(value, int) or isinstance(value, bool) or not 1 <= value <= _MOST_WEIGHT:
        raise _refuse(
            f"{value!r} is no weight, so CPU time could not be shared by it; write a whole number"
            f" from 1 to {_MOST_WEIGHT}, or idle"
        )
    return value


Group = Annotated[_Group, BeforeValidator(_group)]
Label = Annotated[
    str,
    _matching(
        LABEL,
        "DNS label, so no machine could have it in its name; use lower-case letters, digits and"
        " inner hyphens, at most 63",
    ),
]
Taint = Annotated[
    str,
    _matching(
        r"[^=:\s]+(=[^=:\s]*)?:(NoSchedule|PreferNoSchedule|NoExecute)",
        "taint, so kubelets would refuse to start; write key=value:Effect with NoSchedule,"
        " PreferNoSchedule or NoExecute",
    ),
]
Resource = Annotated[
    str,
    _matching(
        r"[a-z]+(\.[a-z0-9]([-.a-z0-9]*[a-z0-9])?)?",
        "resource, so no apiserver would start with it; write its plural, and its API group after"
        " a dot, such as pods or jobs.batch",
    ),
]
Held = Annotated[str, AfterValidator(_held)]
Weight = Annotated[int, BeforeValidator(_weight)]
Size = Annotated[int, BeforeValidator(_size)]
Subnet = Annotated[str, AfterValidator(_subnet)]
