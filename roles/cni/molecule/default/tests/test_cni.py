"""Plug-ins that run, a template for containerd, and rules that the kernel takes."""

import json
import re

import pytest


@pytest.mark.parametrize("name", ["bridge", "host-local", "loopback", "portmap"])
def test_plugin(host, name):
    answer = host.check_output(f"CNI_COMMAND=VERSION /usr/lib/cni/{name} < /dev/null")
    assert "1.0.0" in json.loads(answer)["supportedVersions"]


def test_template_gives_a_network(host):
    """Filled in as containerd does it, for a node with one range."""
    text = host.file("/etc/cni/fleetfoot.conflist.template").content_string
    text = re.sub(r"\{\{range \$i, \$range.*?\{\{end\}\}\[(.*?)\]\{\{end\}\}", r"[\1]", text)
    text = text.replace("{{$range}}", "10.90.7.0/24")
    text = re.sub(r"\{\{range \$i, \$route.*?\{\{end\}\}(.*?)\{\{end\}\}", r"\1", text)
    network = json.loads(text.replace("{{$route}}", "0.0.0.0/0"))
    bridge = network["plugins"][0]
    assert bridge["bridge"] == "cni0"
    assert bridge["ipam"]["ranges"] == [[{"subnet": "10.90.7.0/24"}]]
    assert bridge["ipam"]["routes"] == [{"dst": "0.0.0.0/0"}]


def test_rules_load(host):
    """For real: the machine has a packet filter of its own."""
    host.check_output("systemctl daemon-reload")
    host.check_output("systemctl start cni-masquerade.service")
    rules = host.check_output("nft list table ip fleetfoot-cni")
    assert "ip saddr 10.90.0.0/16 ip daddr != @direct masquerade" in rules
    host.check_output("systemctl reload cni-masquerade.service")
    host.check_output("systemctl stop cni-masquerade.service")
    assert host.run("nft list table ip fleetfoot-cni").failed


def test_settings(host):
    text = host.file("/etc/sysctl.d/50-fleetfoot-cni.conf").content_string
    assert "net.ipv4.ip_forward = 1" in text
    assert "net.bridge.bridge-nf-call-iptables = 1" in text
    assert "br_netfilter" in host.file("/etc/modules-load.d/50-fleetfoot-cni.conf").content_string


def test_unit_is_sound(host):
    assert host.service("cni-masquerade").is_enabled
    assert host.check_output("systemd-analyze verify --man=no cni-masquerade.service") == ""
