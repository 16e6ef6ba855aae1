"""The front end finds its apiserver ready and passes TLS on, unopened."""

import contextlib
import json
import os
import socket
import ssl
import time
from pathlib import Path

FACTS = json.loads((Path(os.environ["MOLECULE_EPHEMERAL_DIRECTORY"]) / "machine.json").read_text())
SHOW = """python3 -c '
import socket
s = socket.socket(socket.AF_UNIX); s.connect("/run/haproxy-front/admin.sock")
s.sendall(b"show stat\\n")
print(b"".join(iter(lambda: s.recv(65536), b"")).decode())'"""


def test_runs(host):
    service = host.service("haproxy@front")
    assert service.is_enabled
    assert service.is_running, host.check_output("journalctl -u haproxy@front --no-pager -n 30")


def server(host):
    """Return what haproxy says of the apiserver."""
    lines = host.check_output(SHOW).splitlines()
    keys = lines[0].removeprefix("# ").split(",")
    rows = [dict(zip(keys, line.split(","), strict=False)) for line in lines[1:] if line]
    found = {row["svname"]: row for row in rows if row["pxname"] == "api-online"}["target"]
    return found["status"], found["check_status"]


def becomes(host, status):
    deadline = time.monotonic() + 60
    while server(host) != status:
        assert time.monotonic() < deadline, server(host)
        time.sleep(0.2)


@contextlib.contextmanager
def connection():
    """A client's connection to the front end."""
    authority = Path(FACTS["state_dir"]) / "pki/kubernetes/ca.crt"
    context = ssl.create_default_context(cafile=str(authority))
    with (
        socket.create_connection((FACTS["address"], 6443), 5) as plain,
        context.wrap_socket(plain, server_hostname=f"api-online.{FACTS['zone']}") as secured,
    ):
        yield secured


def test_server_is_up(host):
    assert server(host) == ("UP", "L7OK")


def test_apiserver_answers_through_it():
    """The certificate that a client sees is the apiserver's, so nothing opened the connection."""
    with connection() as secured:
        subject = dict(pair[0] for pair in secured.getpeercert()["subject"])
    assert subject["commonName"] == "kube-apiserver"


def test_who_is_about_to_end_keeps_whom_it_has(host):
    try:
        with connection() as secured:
            host.run_test("systemctl stop --no-block kube-apiserver@online")
            becomes(host, ("NOLB", "L7OKC"))
            secured.sendall(b"GET /livez HTTP/1.1\r\nHost: kubernetes\r\n\r\n")
            assert secured.recv(4096).startswith(b"HTTP/1.1 401 ")
    finally:
        host.run_test("systemctl start kube-apiserver@online")
        becomes(host, ("UP", "L7OK"))
