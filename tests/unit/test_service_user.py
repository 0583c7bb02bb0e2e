"""service_user: an account of somebody else's is never made ours."""

import pytest
from rendering import asserted

OURS = "minos:x:2600:2600:Minos training:/var/lib/minos:/bin/bash"
GROUP = "minos:x:2600:"


def accepted(*answers: str) -> bool:
    """Whether the role goes on where `getent` says this of its name, its uid, its gid and the group of its name."""
    refusal = "Refuse an account or a number that belongs to somebody else"
    found = {"results": [{"stdout": text} for text in answers]}
    return asserted("service_user", "main", refusal, __service_user_found=found)


@pytest.mark.parametrize(
    ("account", "with_the_uid", "with_the_gid", "group", "fits"),
    [
        ("", "", "", "", True),
        (OURS, OURS, GROUP, GROUP, True),
        ("", "", GROUP, GROUP, True),
        ("minos:x:1001:1001:Minos training:/var/lib/minos:/bin/bash", "", "", "", False),
        ("", "alice:x:2600:2600:Alice:/home/alice:/bin/bash", "", "", False),
        ("", "", "alice:x:2600:", "", False),
        # With another number its files would be a nobody's.
        ("", "", "", "minos:x:1005:alice,bob", False),
        # It fits in all but whose it is: a password, a home and a shell would be lost.
        ("minos:x:2600:2600:Minos,,,:/home/minos:/bin/zsh", OURS, GROUP, GROUP, False),
        ("minos:x:2600:2600::/home/minos:/bin/bash", OURS, GROUP, GROUP, False),
    ],
)
def test_only_an_account_of_ours_or_none_is_taken(account, with_the_uid, with_the_gid, group, fits):
    assert accepted(account, with_the_uid, with_the_gid, group) is fits
