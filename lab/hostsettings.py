"""How this host reaches package indexes (pip settings, proxy, certificates, apt mirror), handed on to the nodes.

pip's files and variables are read as pip documents their order, without pip: a bare Debian has none.
"""

import configparser
import json
import re
import subprocess
import sys
from dataclasses import asdict, dataclass, field
from pathlib import Path
from urllib.parse import unquote, urlsplit

CERTIFICATE = re.compile(r"-----BEGIN CERTIFICATE-----.*?-----END CERTIFICATE-----", re.DOTALL)
SYSTEM_BUNDLE = Path("/etc/ssl/certs/ca-certificates.crt")
BUNDLE_VARIABLES = ("PIP_CERT", "REQUESTS_CA_BUNDLE", "SSL_CERT_FILE", "CURL_CA_BUNDLE")
PROXY_VARIABLES = ("http_proxy", "https_proxy", "ftp_proxy", "all_proxy", "no_proxy")
LOOPBACK = re.compile(r"(?:(?<=//)|(?<=@))(127\.\d+\.\d+\.\d+|localhost|\[::1\])(?=[:/]|$)")


@dataclass
class HostSettings:
    find_links: list[str] = field(default_factory=list)
    index_url: str | None = None
    extra_index_urls: list[str] = field(default_factory=list)
    ca_bundle: str | None = None
    """File with the certificates that this host's own tools are told to trust, None: nothing is told."""
    proxy_env: dict[str, str] = field(default_factory=dict)
    apt_proxy: dict[str, str] = field(default_factory=dict)
    """"http" and "https" -> proxy URL, from apt's own configuration."""

    def to_json(self) -> str:
        return json.dumps(asdict(self), indent=2) + "\n"

    @classmethod
    def from_json(cls, text: str) -> "HostSettings":
        return cls(**json.loads(text))

    def local_directories(self) -> list[str]:
        """Directories of this host that the nodes must see at the same path, for pip to find packages there."""
        paths = [local for entry in self.find_links if (local := local_path(entry))]
        for entry in [self.index_url or "", *self.extra_index_urls]:
            if local := local_path(entry):
                # An index links to files beside itself ("../../packages/..."), so its parent is needed too.
                parent = local.parent
                paths.append(parent if local.name == "simple" and len(parent.parts) > 2 else local)
        return sorted({str(path) for path in paths if path.is_dir()})

    def needs_host_loopback(self) -> bool:
        """True when a proxy or an index listens on 127.0.0.1 of this host."""
        proxies = [value for name, value in self.proxy_env.items() if name != "no_proxy"]
        urls = [*proxies, *self.apt_proxy.values(), *self.find_links, self.index_url or "", *self.extra_index_urls]
        return any(LOOPBACK.search(url) for url in urls)


def for_nodes(url: str, host_address: str) -> str:
    """The same proxy or index as a node must write it: the host's loopback has another address there."""
    return LOOPBACK.sub(host_address, url)


def local_path(entry: str) -> Path | None:
    """The directory that a find-links or index setting names, None for a URL on the network."""
    parts = urlsplit(entry)
    if parts.scheme == "file":
        return Path(unquote(parts.path))
    return Path(entry) if entry.startswith("/") else None


def gather(environment: dict[str, str], home: Path) -> HostSettings:
    """Read the settings of the person who runs the lab."""
    pip = pip_settings(environment, pip_files(environment, home))
    return HostSettings(
        find_links=_absolute(pip.get("find-links", "").split()),
        index_url=pip.get("index-url"),
        extra_index_urls=pip.get("extra-index-url", "").split(),
        ca_bundle=_bundle(pip, environment),
        proxy_env=proxy_environment(environment),
        apt_proxy=apt_proxy(_apt_configuration()),
    )


def pip_files(environment: dict[str, str], home: Path) -> list[Path]:
    """pip's configuration files, the last one wins."""
    if environment.get("PIP_CONFIG_FILE") == "/dev/null":
        return []
    config_home = Path(environment.get("XDG_CONFIG_HOME") or home / ".config")
    return [
        Path("/etc/xdg/pip/pip.conf"),
        Path("/etc/pip.conf"),
        home / ".pip/pip.conf",
        config_home / "pip/pip.conf",
        Path(sys.prefix) / "pip.conf",
        *([Path(named)] if (named := environment.get("PIP_CONFIG_FILE")) else []),
    ]


def pip_settings(environment: dict[str, str], files: list[Path]) -> dict[str, str]:
    """pip's settings by long option name: [global], then [install], then PIP_*."""
    merged: dict[str, dict[str, str]] = {"global": {}, "install": {}}
    for file in files:
        parser = configparser.RawConfigParser()
        try:
            parser.read(file)
        except (configparser.Error, UnicodeDecodeError):  # pip itself complains about it with the right words
            continue
        for section, values in merged.items():
            if parser.has_section(section):
                values.update({key.replace("_", "-"): value for key, value in parser.items(section)})
    variables = {
        name.removeprefix("PIP_").lower().replace("_", "-"): value
        for name, value in environment.items()
        if name.startswith("PIP_") and value
    }
    return {**merged["global"], **merged["install"], **variables}


def proxy_environment(environment: dict[str, str]) -> dict[str, str]:
    """The proxy variables in small letters, which every tool reads."""
    found = {}
    for name in PROXY_VARIABLES:
        if value := environment.get(name) or environment.get(name.upper()):
            found[name] = value
    return found


def apt_proxy(dump: str) -> dict[str, str]:
    """The general proxies in the output of `apt-config dump`; "DIRECT" and per-host ones are left out."""
    pairs = re.findall(r'^Acquire::(https?)::Proxy "([^"]+)";$', dump, re.MULTILINE)
    return {scheme: url for scheme, url in pairs if url != "DIRECT"}


def apt_mirrors(sources: str, codename: str) -> dict[str, str]:
    """The host's Debian mirrors, "main" and "security" -> URI, from its apt sources in both formats.

    Only of the host's own release `codename`: a third party's repository names its suites otherwise.
    """
    entries = re.findall(r"^deb\s+(?:\[[^\]]*\]\s+)?(\S+)\s+(\S+)", sources, re.MULTILINE)
    for paragraph in re.split(r"\n\s*\n", sources):
        fields = dict(re.findall(r"^(\w[\w-]*):[ \t]*(.*)$", paragraph, re.MULTILINE))
        if "deb" in fields.get("Types", "").split():
            entries += [
                (uri, suite) for uri in fields.get("URIs", "").split() for suite in fields.get("Suites", "").split()
            ]
    mirrors: dict[str, str] = {}
    for uri, suite in entries:
        if suite == codename:
            mirrors.setdefault("main", uri)
        elif suite in (f"{codename}-security", f"{codename}/updates"):
            mirrors.setdefault("security", uri)
    return mirrors


def missing_certificates(host_bundles: list[Path], known: str) -> list[str]:
    """PEM certificates that the host trusts and the text `known` does not hold."""
    have = set(CERTIFICATE.findall(known))
    missing: dict[str, None] = {}
    for bundle in host_bundles:
        if bundle.is_file():
            missing.update(dict.fromkeys(pem for pem in CERTIFICATE.findall(bundle.read_text(errors="replace"))))
    return [pem for pem in missing if pem not in have]


def _absolute(entries: list[str]) -> list[str]:
    return [entry if "://" in entry else str(Path(entry).expanduser().absolute()) for entry in entries]


def _bundle(pip: dict[str, str], environment: dict[str, str]) -> str | None:
    for candidate in (pip.get("cert"), *(environment.get(name) for name in BUNDLE_VARIABLES)):
        if candidate and Path(candidate).is_file():
            return candidate
    return None


def _apt_configuration() -> str:
    try:
        return subprocess.run(["apt-config", "dump"], capture_output=True, text=True).stdout
    except FileNotFoundError:  # not a Debian or Ubuntu
        return ""
