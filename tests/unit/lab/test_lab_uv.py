"""uv is told what pip is told on this machine."""

from lab.hostsettings import HostSettings
from lab.uv import TORCH_CPU, environment


def test_pips_settings_reach_uv():
    settings = HostSettings(
        find_links=["/wheels", "https://example.org/wheels/"],
        index_url="https://index.example.org/simple",
        extra_index_urls=["https://more.example.org/simple"],
        ca_bundle="/etc/ssl/company.pem",
    )
    told = environment(settings, {"HOME": "/root"})
    assert told["UV_FIND_LINKS"] == "/wheels,https://example.org/wheels/"
    assert told["UV_DEFAULT_INDEX"] == "https://index.example.org/simple"
    assert told["UV_INDEX"] == "https://more.example.org/simple"
    assert told["SSL_CERT_FILE"] == "/etc/ssl/company.pem"
    assert told["HOME"] == "/root"


def test_without_settings_only_the_page_of_the_cpu_builds_is_added():
    told = environment(HostSettings(), {})
    assert told["UV_FIND_LINKS"] == TORCH_CPU
    assert not {"UV_DEFAULT_INDEX", "UV_INDEX", "SSL_CERT_FILE"} & set(told)


def test_what_is_set_for_uv_itself_wins():
    assert environment(HostSettings(index_url="https://a"), {"UV_DEFAULT_INDEX": ""})["UV_DEFAULT_INDEX"] == ""
