"""A host of one's own keeps its journal, and its services get the time to end that Debian gives."""


def test_journal_is_where_debian_has_it(host):
    text = host.check_output("systemd-analyze cat-config systemd/journald.conf")
    assert "Storage=volatile" not in text
    assert host.service("systemd-journald").is_running


def test_services_have_time_to_end(host):
    assert host.check_output("systemctl show -P DefaultTimeoutStopUSec") == "1min 30s"


def test_the_runtime_gets_the_cpu_all_the_same(host):
    assert host.check_output("systemctl show -P CPUWeight containerd.service") == "1000"
