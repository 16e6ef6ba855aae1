"""Pulumi.yaml and Pulumi.<stack>.yaml."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import yaml

from fleetfoot.engine._errors import EngineError, UnsupportedError
from fleetfoot.engine._values import Properties, Secret

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path


@dataclass(frozen=True)
class Project:
    """What Pulumi.yaml says."""

    directory: Path
    name: str
    main: Path
    config: dict[str, Any]
    config_dir: Path

    @classmethod
    def load(cls, directory: Path) -> Project:
        """Reads and checks Pulumi.yaml.

        Args:
            directory: The folder that holds it.

        Raises:
            EngineError: It is absent or malformed.
            UnsupportedError: It asks for what only the CLI does.
        """
        path = directory / "Pulumi.yaml"
        document = _mapping(path, required=True)
        name = document.get("name")
        if not isinstance(name, str) or not name:
            raise EngineError(
                f"{path} has no project name", "No state can be found", "Add `name: <project>`"
            )
        runtime = document.get("runtime")
        language = runtime.get("name") if isinstance(runtime, dict) else runtime
        if language != "python":
            raise UnsupportedError(f"The runtime {language!r} in {path}")
        for key in ("plugins", "packages"):
            if document.get(key):
                raise UnsupportedError(f"The section {key!r} in {path}")
        main = (directory / str(document.get("main", "."))).resolve()
        return cls(
            directory=directory,
            name=name,
            main=main,
            config=document.get("config") or {},
            config_dir=directory / str(document.get("stackConfigDir", ".")),
        )


@dataclass
class Config:
    """The stack's configuration, decrypted.

    Attributes:
        values: Text of each key; lists and objects as JSON.
        secret: The keys whose text must not be shown.
        recorded: The values as the history file records them, still encrypted.
        salt: `encryptionsalt` of the stack's file, if there is one.
    """

    values: dict[str, str] = field(default_factory=dict)
    secret: set[str] = field(default_factory=set)
    recorded: dict[str, Any] = field(default_factory=dict)
    salt: str | None = None

    def package(self, package: str) -> Properties:
        """The inputs of a package's default provider.

        Dynamic providers get the whole configuration under full names, others their own keys.
        """
        found: Properties = {}
        for key, text in self.values.items():
            namespace, name = key.split(":", 1)
            value = Secret(text) if key in self.secret else text
            if package == "pulumi-python":
                found[key] = value
            elif namespace == package:
                found[name] = value
        return found


def read_salt(project: Project, stack: str) -> str | None:
    """The stack file's `encryptionsalt`; other secrets providers are refused."""
    document = _mapping(_stack_file(project, stack))
    provider = document.get("secretsprovider", "passphrase")
    if provider not in ("passphrase", "default"):
        raise UnsupportedError(f"The secrets provider {provider!r} of stack {stack!r}")
    if document.get("environment"):
        raise UnsupportedError("The section 'environment' of a stack's configuration file")
    salt = document.get("encryptionsalt")
    return str(salt) if salt else None


def load_config(project: Project, stack: str, decrypt: Callable[[str], str]) -> Config:
    """Reads the stack's configuration over the project's defaults."""
    config = Config()
    for key, declared in project.config.items():
        full = _full(project, key)
        if not isinstance(declared, dict):
            _set(config, full, declared, decrypt)
        elif "value" in declared or "default" in declared:
            _set(config, full, declared.get("value", declared.get("default")), decrypt)
    path = _stack_file(project, stack)
    for key, value in (_mapping(path).get("config") or {}).items():
        _set(config, _full(project, key), value, decrypt)
    for key, declared in project.config.items():
        if isinstance(declared, dict) and _full(project, key) not in config.values:
            raise EngineError(
                f"Stack {stack!r} is missing configuration value {key!r}",
                "The program was not started",
                f"Set it in {path}",
            )
    config.values = dict(sorted(config.values.items()))
    return config


def _set(config: Config, key: str, value: Any, decrypt: Callable[[str], str]) -> None:
    config.secret.discard(key)
    config.recorded[key] = _record(value)
    if _has_secure(value):
        config.secret.add(key)
        value = _open(value, decrypt)
    config.values[key] = _text(value)


def _text(value: Any) -> str:
    if isinstance(value, str):
        return value
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, (dict, list)):
        return json.dumps(value, separators=(",", ":"), sort_keys=True, ensure_ascii=False)
    return "" if value is None else str(value)


def _record(value: Any) -> Any:
    """A scalar as text, an object or list as JSON under the CLI's key."""
    if isinstance(value, dict) and set(value) == {"secure"}:
        return value
    if isinstance(value, (dict, list)):
        return {"objectValue": value}
    return _text(value)


def _has_secure(value: Any) -> bool:
    if isinstance(value, dict):
        return set(value) == {"secure"} or any(_has_secure(item) for item in value.values())
    return isinstance(value, list) and any(_has_secure(item) for item in value)


def _open(value: Any, decrypt: Callable[[str], str]) -> Any:
    if isinstance(value, dict):
        if set(value) == {"secure"}:
            return decrypt(value["secure"])
        return {key: _open(item, decrypt) for key, item in value.items()}
    return [_open(item, decrypt) for item in value] if isinstance(value, list) else value


def _full(project: Project, key: str) -> str:
    return key if ":" in key else f"{project.name}:{key}"


def _stack_file(project: Project, stack: str) -> Path:
    return project.config_dir / f"Pulumi.{stack}.yaml"


def _mapping(path: Path, *, required: bool = False) -> dict[str, Any]:
    if not path.exists() and not required:
        return {}
    try:
        document = yaml.safe_load(path.read_text())
    except (OSError, yaml.YAMLError) as error:
        raise EngineError(
            f"{path} cannot be read: {error}", "No program was started", "Repair the file"
        ) from error
    if document is None:
        return {}
    if not isinstance(document, dict):
        raise EngineError(f"{path} is no mapping", "No program was started", "Repair the file")
    return document
