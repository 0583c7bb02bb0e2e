"""A node's file system: the base image plus what makes it one machine, written as an installer would."""

import shutil
import uuid
from pathlib import Path

from lab import hostsettings, keys, network, process
from lab.config import NODE_USER, Paths
from lab.files import remove_tree
from lab.hostsettings import HostSettings
from lab.state import LabState

NODE_BUNDLE = "etc/ssl/certs/ca-certificates.crt"


def root_of(paths: Paths, node: str) -> Path:
    return paths.nodes / node / "root"


def create(paths: Paths, state: LabState, settings: HostSettings, image: Path, node: str) -> None:
    """Make a container node's root. It gets its final name last: a root that exists is complete."""
    final = root_of(paths, node)
    draft = final.with_name("draft")
    unpack(paths, state, settings, image, node, draft)
    _connect(draft, state, node)
    draft.rename(final)


def unpack(paths: Paths, state: LabState, settings: HostSettings, image: Path, node: str, root: Path) -> None:
    """The image in the new directory `root`, with all that makes it this node but the settings of its network."""
    remove_tree(root)
    root.mkdir(parents=True)
    unpack_tar(paths, image, root)
    _identify(paths, root, node)
    write(root / "etc/resolv.conf", f"nameserver {state.gateway}\n")
    _let_in(paths, root, node)
    _hand_over(paths, state, settings, root)


def unpack_tar(paths: Paths, archive: Path | str, root: Path) -> None:
    process.run(
        paths.lab, "tar", "-C", root, "--numeric-owner", "--xattrs", "--xattrs-include=*", "-xpf", archive,
    )  # fmt: skip


def _identify(paths: Paths, root: Path, node: str) -> None:
    write(root / "etc/hostname", f"{node}\n")
    write(root / "etc/machine-id", f"{uuid.uuid4().hex}\n", mode=0o444)
    # As Debian's installer writes it; the line for 127.0.1.1 is one of the things site.yml has to deal with.
    write(
        root / "etc/hosts",
        f"127.0.0.1\tlocalhost\n127.0.1.1\t{node}\n\n"
        "# The following lines are desirable for IPv6 capable hosts\n"
        "::1     localhost ip6-localhost ip6-loopback\nff02::1 ip6-allnodes\nff02::2 ip6-allrouters\n",
    )


def _connect(root: Path, state: LabState, node: str) -> None:
    # 80: the 10-netplan-*.network that netplan writes must win once site.yml configures the address.
    write(
        root / "etc/systemd/network/80-lan.network",
        f"[Match]\nName={network.NODE_NIC}\n\n[Network]\nAddress={state.nodes[node].address}/24\n"
        f"Gateway={state.gateway}\nDNS={state.gateway}\n",
    )


def _let_in(paths: Paths, root: Path, node: str) -> None:
    for key in keys.host_keys(paths, node):
        write(root / "etc/ssh" / key.name, key.read_text(), mode=0o600)
        write(root / "etc/ssh" / keys.public(key).name, keys.public(key).read_text())
    process.run(
        paths.lab, "chroot", root, "install", "-d", "-m", "0700", "-o", NODE_USER, "-g", NODE_USER,
        f"/home/{NODE_USER}/.ssh",
    )  # fmt: skip
    authorized = root / f"home/{NODE_USER}/.ssh/authorized_keys"
    write(authorized, keys.public(paths.ssh_key).read_text(), mode=0o600)
    home = (root / f"home/{NODE_USER}").stat()
    shutil.chown(authorized, home.st_uid, home.st_gid)
    process.run(paths.lab, "chroot", root, "chpasswd", stdin=f"{NODE_USER}:{paths.password.read_text()}")


def _hand_over(paths: Paths, state: LabState, settings: HostSettings, root: Path) -> None:
    """The host's apt proxy and the certificates it trusts."""
    host = network.host_of_uplink(state)
    if settings.apt_proxy:
        lines = [
            f'Acquire::{scheme}::Proxy "{hostsettings.for_nodes(url, host)}";\n'
            for scheme, url in settings.apt_proxy.items()
        ]
        write(root / "etc/apt/apt.conf.d/80proxy", "".join(lines))
    bundles = [hostsettings.SYSTEM_BUNDLE, *([Path(settings.ca_bundle)] if settings.ca_bundle else [])]
    missing = hostsettings.missing_certificates(bundles, (root / NODE_BUNDLE).read_text())
    for number, pem in enumerate(missing, start=1):
        write(root / f"usr/local/share/ca-certificates/host-{number}.crt", pem + "\n")
    if missing:
        process.run(paths.lab, "chroot", root, "update-ca-certificates")


def write(path: Path, text: str, *, mode: int = 0o644) -> None:
    path.unlink(missing_ok=True)  # also a symbolic link, which would lead out of the root
    path.write_text(text)
    path.chmod(mode)
