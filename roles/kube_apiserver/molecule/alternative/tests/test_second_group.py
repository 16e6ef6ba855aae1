"""An apiserver of another group: ready for its own clients, a stranger to the first group's."""

import pytest

from tests.molecule.ask import ask

PKI = "/etc/kubernetes/pki"


def answer(host, path, group):
    """Ask with the certificate of a group's client."""
    return ask(host, 7444, path, f"{PKI}/apiserver-{group}/probe")


def test_runs(host):
    service = host.service("kube-apiserver@offline")
    assert service.is_enabled
    assert service.is_running, host.check_output("journalctl -u kube-apiserver@offline -n 50")


def test_is_ready_for_its_own_clients(host):
    assert answer(host, "/readyz", "offline") == "200 ok"


@pytest.mark.parametrize("path", ["/readyz", "/api/v1/namespaces"])
def test_clients_of_the_other_group_are_unknown(host, path):
    assert answer(host, path, "online") == "401"


def test_reads_are_in_its_log(host):
    answer(host, "/api/v1/namespaces?limit=7", "offline")
    read = host.file("/var/log/kubernetes/audit-offline.log").content_string.splitlines()
    assert any('"requestURI":"/api/v1/namespaces?limit=7"' in line for line in read)


def test_it_is_no_endpoint_of_the_service(host):
    flags = host.file("/etc/kubernetes/apiserver/offline.env").content_string
    assert "--endpoint-reconciler-type=none" in flags
    assert "--watch-cache-sizes=jobs.batch#100,pods#500" in flags


def test_it_collects_garbage_and_steps_back_as_told(host):
    pid = host.check_output("systemctl show --property=MainPID --value kube-apiserver@offline")
    assert host.process.get(pid=pid).nice == 0
    environment = host.file(f"/proc/{pid}/environ").content_string.split("\0")
    assert {"GOGC=400", "GOMEMLIMIT=700MiB"} <= set(environment)
