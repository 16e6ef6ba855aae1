"""The front end finds its apiserver ready and passes TLS on, unopened."""

import json
import os
import socket
import ssl
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


def test_server_is_up(host):
    lines = host.check_output(SHOW).splitlines()
    keys = lines[0].removeprefix("# ").split(",")
    rows = [dict(zip(keys, line.split(","), strict=False)) for line in lines[1:] if line]
    servers = {row["svname"]: row for row in rows if row["pxname"] == "api-online"}
    assert servers["target"]["status"] == "UP"
    assert servers["target"]["check_status"] == "L7OK"


def test_apiserver_answers_through_it():
    """The certificate that a client sees is the apiserver's, so nothing opened the connection."""
    authority = Path(FACTS["state_dir"]) / "pki/kubernetes/ca.crt"
    context = ssl.create_default_context(cafile=str(authority))
    with (
        socket.create_connection((FACTS["address"], 6443), 5) as plain,
        context.wrap_socket(plain, server_hostname=f"api-online.{FACTS['zone']}") as secured,
    ):
        subject = dict(pair[0] for pair in secured.getpeercert()["subject"])
    assert subject["commonName"] == "kube-apiserver"
