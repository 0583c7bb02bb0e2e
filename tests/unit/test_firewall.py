"""firewall: which of ufw's rules are added and taken back, and what firewalld is given."""

import xml.etree.ElementTree as ElementTree

from rendering import evaluated, rendered

MEMBERS = {"node1": "10.0.0.1", "node2": "10.0.0.2"}
SSH = "ufw allow 22/tcp comment 'minos: ssh'"
RULES = [SSH, *(f"ufw allow from {address} comment 'minos: {name}'" for name, address in MEMBERS.items())]


def told(*present, session="10.0.0.9 5000 10.0.0.1 22", sshd="listenaddress 0.0.0.0:22", **options):
    """What the role knows at its last tasks; `present`: lines of `ufw show added`."""
    return {
        "firewall_members": MEMBERS,
        "__firewall_found": {"stdout": sshd, "stdout_lines": sshd.splitlines()},
        "__firewall_session": {"stdout": session},
        "__firewall_added": {"stdout": "\n".join(["Added user rules (see 'ufw status' ...):", *present])},
        **options,
    }


def missing(*present, **options):
    return [
        f"{each['key']} comment '{each['value']}'"
        for each in evaluated("firewall", "__firewall_missing", **told(*present, **options))
    ]


def stale(*present, **options):
    return evaluated("firewall", "__firewall_stale", **told(*present, **options))


def test_everything_is_added_once():
    assert missing("(None)") == RULES
    assert missing(*RULES) == stale(*RULES) == []


def test_a_former_member_and_a_former_address_go():
    gone = "ufw allow from 10.0.0.7 comment 'minos: node3'"
    assert stale(*RULES, gone) == ["ufw allow from 10.0.0.7"]


def test_a_member_with_another_name_gets_another_comment_and_keeps_its_rule():
    renamed = [SSH, RULES[1], "ufw allow from 10.0.0.2 comment 'minos: studio'"]
    assert missing(*renamed) == [RULES[2]]
    assert stale(*renamed) == []


def test_the_owners_rules_stay_his():
    own = ["ufw allow 22/tcp", "ufw allow 8080/tcp comment 'web'", "ufw deny from 10.0.0.8"]
    assert missing(*own) == RULES[1:], "his own rule for SSH does, and must not get our mark"
    assert stale(*own) == []


def test_a_port_that_the_owner_limits_or_logs_stays_so():
    """ufw would put our `allow` in the place of his rule, and reset would take it away: nobody would get in."""
    for own in ("ufw limit 22/tcp", "ufw allow log 22/tcp", "ufw limit log-all 22/tcp comment 'mine'"):
        assert missing(own) == RULES[1:]
        assert stale(own) == []
    assert missing("ufw limit from 10.0.0.1") == RULES, "members are not counted"
    some = {"firewall_ssh_from": ["10.0.0.0/24"]}
    assert missing("ufw limit from 10.0.0.0/24 to any port 22 proto tcp", **some) == RULES[1:]


def test_a_port_that_the_owner_has_closed_is_not_opened():
    """ufw would put ours in the place of his rule, and nobody would ever bring that back."""

    def reopened(*present, **options):
        return evaluated("firewall", "__firewall_reopened", **told(*present, **options))

    for own in ("ufw deny 22/tcp", "ufw reject log 22/tcp comment 'mine'"):
        assert reopened(*RULES[1:], own) == ["ufw allow 22/tcp"]
        assert reopened(own, firewall_ssh_from=["10.0.0.0/24"]) == []
    assert reopened("ufw deny 8080/tcp", "ufw deny from 10.0.0.8 to any port 22 proto tcp", *RULES) == []


def test_ssh_from_some_places_only_takes_the_rule_for_all_back():
    options = {"firewall_ssh_from": ["10.0.0.0/24", "fd00::/64", "2001:db8::/32", "10.0.0.9/32", "fd00::9/128"]}
    wanted = [
        f"ufw allow from {source} to any port 22 proto tcp comment 'minos: ssh'"
        for source in ("10.0.0.0/24", "fd00::/64", "2001:db8::/32", "10.0.0.9", "fd00::9")
    ]
    assert missing(*RULES, **options) == wanted
    assert stale(*RULES, **options) == ["ufw allow 22/tcp"]


def test_every_port_that_may_be_in_use_is_open():
    sshd = "port 22\nlistenaddress 0.0.0.0:22\nlistenaddress [::]:2222\nListen=[::]:2200 (Stream)"
    options = {"firewall_ssh_ports": [2022], "sshd": sshd, "session": "fe80::1%lan0 5000 fe80::2%lan0 2022"}
    ports = [rule.split()[2] for rule in missing("(None)", **options) if "ssh" in rule]
    assert set(ports) == {"22/tcp", "2022/tcp", "2200/tcp", "2222/tcp"} and len(ports) == 4
    assert [rule.split()[2] for rule in missing("(None)", session="", sshd="")] == ["from", "from"]


DOOR = {"name": "tensorboard", "port": 6006, "from": ["10.0.9.0/24", "fd00::1/128"]}


def test_a_port_for_others_is_open_to_whom_the_owner_names():
    wanted = [
        f"ufw allow from {source} to any port 6006 proto tcp comment 'minos: tensorboard'"
        for source in ("10.0.9.0/24", "fd00::1")
    ]
    assert missing(*RULES, firewall_doors=[DOOR]) == wanted
    assert len(stale(*RULES, *wanted)) == 2, "and closed again"
    assert missing(*RULES, firewall_doors=[DOOR | {"from": []}]) == []
    assert missing(*RULES, firewall_doors=[DOOR | {"from": ["any"]}]) == [
        "ufw allow 6006/tcp comment 'minos: tensorboard'"
    ]


def policy(**options):
    return ElementTree.fromstring(rendered("firewall", "firewalld-policy.xml.j2", **told(**options)))


def test_firewalld_lets_members_in_and_everybody_to_ssh():
    found = policy()
    assert [rule.find("source").get("address") for rule in found.findall("rule")] == list(MEMBERS.values())
    assert [port.attrib for port in found.findall("port")] == [{"port": "22", "protocol": "tcp"}]
    assert found.get("target") == "CONTINUE", "what the owner has in his zones goes on"


def test_firewalld_closes_ssh_to_the_rest_where_the_owner_says_from_where():
    found = policy(firewall_ssh_from=["10.0.0.0/24", "fd00::/64"])
    assert found.findall("port") == []
    rules = [(int(rule.get("priority")), rule.get("family"), rule[-1].tag) for rule in found.findall("rule")]
    assert sorted(rules, key=lambda rule: rule[0])[-3:] == [
        (-5, "ipv4", "accept"),
        (-5, "ipv6", "accept"),
        (10, None, "reject"),
    ]


def test_firewalld_opens_a_port_for_others_to_whom_the_owner_names():
    rules = [rule for rule in policy(firewall_doors=[DOOR]).findall("rule") if rule.find("port") is not None]
    assert [
        (rule.find("source").get("address"), rule.get("family"), rule.find("port").get("port")) for rule in rules
    ] == [
        ("10.0.9.0/24", "ipv4", "6006"),
        ("fd00::1/128", "ipv6", "6006"),
    ]
    assert [port.get("port") for port in policy(firewall_doors=[DOOR | {"from": ["any"]}]).findall("port")] == [
        "22",
        "6006",
    ]
