"""The file that the role writes, as clients read it."""

import yaml

PATH = "/etc/role-test/kubeconfig"


def test_names_files_and_holds_no_secret(host):
    config = yaml.safe_load(host.file(PATH).content_string)
    assert config["clusters"][0]["cluster"] == {
        "server": "https://api.example:6443",
        "certificate-authority": "/etc/kubernetes/pki/ca.crt",
    }
    assert config["users"][0]["user"] == {
        "client-certificate": "/etc/role-test/tester.crt",
        "client-key": "/etc/role-test/tester.key",
    }
    chosen = next(c for c in config["contexts"] if c["name"] == config["current-context"])
    assert chosen["context"] == {"cluster": "fleetfoot", "user": "tester"}


def test_is_private(host):
    file = host.file(PATH)
    assert (file.user, file.mode) == ("nobody", 0o600)
