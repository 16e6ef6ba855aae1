"""Action plug-in: build the pinned Go programs, with progress that a person can follow."""

from __future__ import annotations

import os
from typing import Any

from ansible.errors import AnsibleActionFail
from ansible.plugins.action import ActionBase
from ansible.utils.display import Display

from fleetfoot import artifacts
from fleetfoot.errors import FleetfootError


class ActionModule(ActionBase):  # type: ignore[misc]  # Ansible is untyped
    """The plug-in; runs on the controller only."""

    _requires_connection = False
    _supports_check_mode = True

    def run(self, tmp: str | None = None, task_vars: Any = None) -> dict[str, Any]:
        """Build what is not cached; in check mode only say whether anything would be built."""
        result: dict[str, Any] = super().run(tmp, task_vars)
        if self._task.check_mode:
            missing = any(not module.built for module in artifacts.modules())
            return {**result, "changed": missing}
        for entry in self._task.environment or []:
            os.environ.update(self._templar.template(entry) or {})
        try:
            built = artifacts.build(Display().display)
            return {**result, "changed": built, "directory": str(artifacts.directory())}
        except FleetfootError as told:
            raise AnsibleActionFail(str(told)) from told
