"""How the host's pip, proxy, certificate and apt settings are read and translated for the nodes."""

from pathlib import Path

import pytest

from lab import hostsettings
from lab.hostsettings import HostSettings


def pip_conf(path: Path, text: str) -> Path:
    path.write_text(text)
    return path


def test_later_file_install_section_and_environment_win_in_that_order(tmp_path):
    files = [
        pip_conf(tmp_path / "a", "[global]\nindex-url = https://a/simple\ntimeout = 1\nfind_links = /a\n"),
        pip_conf(tmp_path / "b", "[global]\nindex-url = https://b/simple\n[install]\ntimeout = 2\n"),
        tmp_path / "absent",
    ]
    assert hostsettings.pip_settings({}, files) == {
        "index-url": "https://b/simple",
        "timeout": "2",
        "find-links": "/a",
    }
    over = hostsettings.pip_settings({"PIP_INDEX_URL": "https://env/simple", "PIP_TIMEOUT": ""}, files)
    assert (over["index-url"], over["timeout"]) == ("https://env/simple", "2")


def test_percent_signs_and_broken_files_do_not_stop_the_lab(tmp_path):
    good = pip_conf(tmp_path / "a", "[global]\nindex-url = https://u:p%40ss@a/simple\n")
    broken = pip_conf(tmp_path / "b", "index-url without a section\n")
    assert hostsettings.pip_settings({}, [good, broken]) == {"index-url": "https://u:p%40ss@a/simple"}


def test_config_file_dev_null_means_no_files():
    assert hostsettings.pip_files({"PIP_CONFIG_FILE": "/dev/null"}, Path("/home/x")) == []


def test_gather_takes_the_settings_of_the_environment(tmp_path):
    bundle = tmp_path / "ca.pem"
    bundle.write_text("x")
    found = hostsettings.gather(
        {
            "PIP_CONFIG_FILE": "/dev/null",
            "PIP_FIND_LINKS": f"{tmp_path} https://files/torch",
            "PIP_EXTRA_INDEX_URL": "https://one/simple\nhttps://two/simple",
            "SSL_CERT_FILE": str(bundle),
            "REQUESTS_CA_BUNDLE": "/does/not/exist",
            "HTTPS_PROXY": "http://proxy:3128",
        },
        tmp_path,
    )
    assert found.find_links == [str(tmp_path), "https://files/torch"]
    assert found.extra_index_urls == ["https://one/simple", "https://two/simple"]
    assert found.index_url is None
    assert found.ca_bundle == str(bundle)
    assert found.proxy_env == {"https_proxy": "http://proxy:3128"}
    assert HostSettings.from_json(found.to_json()) == found


def test_directories_that_the_nodes_must_see(tmp_path):
    (tmp_path / "wheels").mkdir()
    (tmp_path / "mirror/simple").mkdir(parents=True)
    (tmp_path / "flat").mkdir()
    settings = HostSettings(
        find_links=[str(tmp_path / "wheels"), "https://files/x", "/not/there"],
        index_url=f"file://{tmp_path}/mirror/simple",
        extra_index_urls=[(tmp_path / "flat").as_uri(), "https://index.example.org/simple"],
    )
    # The index links to files beside itself, hence its parent.
    assert settings.local_directories() == [str(tmp_path / name) for name in ("flat", "mirror", "wheels")]


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("http://127.0.0.1:3128", "http://10.1.1.2:3128"),
        ("http://user:pw@localhost:3128/", "http://user:pw@10.1.1.2:3128/"),
        ("http://localhost", "http://10.1.1.2"),
        ("http://[::1]:8080", "http://10.1.1.2:8080"),
        ("http://localhost.example:3128", "http://localhost.example:3128"),
        ("http://proxy:3128", "http://proxy:3128"),
    ],
)
def test_a_proxy_on_the_hosts_loopback_gets_the_address_the_nodes_see(url, expected):
    assert hostsettings.for_nodes(url, "10.1.1.2") == expected
    assert HostSettings(proxy_env={"http_proxy": url}).needs_host_loopback() == (url != expected)


def test_no_proxy_for_localhost_does_not_open_the_hosts_loopback():
    assert not HostSettings(proxy_env={"no_proxy": "//localhost"}).needs_host_loopback()


def test_apt_proxies():
    dump = (
        'Acquire::http::Proxy "http://apt:3142";\nAcquire::https::Proxy "DIRECT";\n'
        'Acquire::http::Proxy::mirror.lan "http://other:1";\nDPkg::Options:: "x";\n'
    )
    assert hostsettings.apt_proxy(dump) == {"http": "http://apt:3142"}


def test_apt_mirror_of_the_hosts_release_only():
    sources = (
        "deb [arch=amd64 signed-by=/x] https://download.docker.com/linux/debian bookworm-stable stable\n"
        "deb http://mirror.lan/debian bookworm main\n# deb http://old/debian bookworm main\n"
        "\n\nTypes: deb\nURIs: http://mirror.lan/debian-security\nSuites: bookworm-security\nComponents: main\n"
        "\n\nTypes: deb-src\nURIs: http://src/debian\nSuites: bookworm\n"
    )
    assert hostsettings.apt_mirrors(sources, "bookworm") == {
        "main": "http://mirror.lan/debian",
        "security": "http://mirror.lan/debian-security",
    }
    assert hostsettings.apt_mirrors(sources, "trixie") == {}


def test_only_certificates_that_the_nodes_lack(tmp_path):
    def pem(body: str) -> str:
        return f"-----BEGIN CERTIFICATE-----\n{body}\n-----END CERTIFICATE-----"

    bundle = tmp_path / "host.pem"
    bundle.write_text(f"# a\n{pem('AAA')}\n{pem('BBB')}\n{pem('BBB')}\n")
    assert hostsettings.missing_certificates([bundle, tmp_path / "none"], pem("AAA")) == [pem("BBB")]
