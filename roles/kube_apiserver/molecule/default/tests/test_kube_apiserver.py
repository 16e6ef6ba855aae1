"""An apiserver that is ready, knows nobody without a certificate, and audits."""

PKI = "/etc/kubernetes/pki/apiserver-online"
ASK = (
    "python3 -c 'import ssl,sys,urllib.request as u,urllib.error as e\n"
    'c=ssl.create_default_context(cafile="/etc/kubernetes/pki/ca.crt")\n'
    "if len(sys.argv)>2: c.load_cert_chain(sys.argv[2],sys.argv[3])\n"
    "try: r=u.urlopen(sys.argv[1],context=c,timeout=10); print(r.status,r.read().decode())\n"
    "except e.HTTPError as x: print(x.code)'"
)


def address(host):
    return host.ansible.get_variables()["ansible_host"]


def url(host, path):
    return f"https://{address(host)}:7443{path}"


def test_runs(host):
    service = host.service("kube-apiserver@online")
    assert service.is_enabled
    assert service.is_running, host.check_output("journalctl -u kube-apiserver@online -n 50")
    assert host.process.get(comm="kube-apiserver").user == "kube-apiserver"


def test_is_ready(host):
    pair = f"{PKI}/kubelet-client.crt {PKI}/kubelet-client.key"
    assert host.check_output(f"{ASK} {url(host, '/readyz')} {pair}") == "200 ok"


def test_knows_nobody_without_a_certificate(host):
    assert host.check_output(f"{ASK} {url(host, '/readyz')}") == "401"
    assert host.check_output(f"{ASK} {url(host, '/version')}") == "401"


def test_secrets_are_private(host):
    for path in (
        "/etc/kubernetes/apiserver/encryption.yaml",
        "/etc/kubernetes/apiserver/service-account.key",
        f"{PKI}/server.key",
        f"{PKI}/etcd-client.key",
    ):
        file = host.file(path)
        assert (file.user, file.mode) == ("kube-apiserver", 0o600), path


def test_audits(host):
    log = host.file("/var/log/kubernetes/audit-online.log")
    assert log.user == "kube-apiserver"
    assert log.size > 0


def test_listens_on_its_address_only(host):
    assert host.socket(f"tcp://{address(host)}:7443").is_listening
    assert not host.socket("tcp://0.0.0.0:7443").is_listening
