"""No USB module can be loaded, and no device that appears is let in."""

import pytest

MODULES = [
    "ehci_hcd",
    "ohci_hcd",
    "uas",
    "uhci_hcd",
    "usb_storage",
    "usbcore",
    "usbhid",
    "xhci_hcd",
]


@pytest.fixture(scope="module")
def configuration(host):
    return host.check_output("modprobe --showconfig").splitlines()


@pytest.mark.parametrize("module", MODULES)
def test_module_is_blocked(configuration, module):
    """By name and as another module's need (install), and by alias (blacklist)."""
    assert f"install {module} /bin/false" in configuration
    assert f"blacklist {module}" in configuration


def test_files(host):
    file = host.file("/etc/modprobe.d/50-usb-disable.conf")
    assert (file.user, file.mode) == ("root", 0o644)


def test_rules_are_sound(host):
    host.check_output("udevadm verify /etc/udev/rules.d/50-usb-disable.rules")
