"""The script's arguments, as somebody has typed them behind `-e`."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from typing import Any

from ansible.parsing.splitter import parse_kv

NAME = "script_args"


def words(value: Any, typed: Sequence[str]) -> tuple[list[str], set[str]]:
    """Return the arguments, and what of the variables of `-e` is no variable but belongs to them.

    `value` is what Ansible has made of script_args, `typed` each -e as it was typed. Ansible divides
    -e 'script_args=--epochs 3' at the blank and keeps --epochs alone; here all of it counts.
    """
    if isinstance(value, list):
        return [str(word) for word in value], set()
    text, rest = str(value), set()
    for each in typed:
        if each.startswith(f"{NAME}="):
            rest = set(parse_kv(each)) - {NAME}
            text = each.removeprefix(f"{NAME}=") if rest else str(value)
    if taken := sorted(name for name in rest if name != "_raw_params" and not name.startswith("-")):
        raise ValueError(
            f"-e {NAME}={text}: Ansible takes {taken[0]}= for a variable; write quotes within the quotes, "
            f"-e \"{NAME}='{text}'\""
        )
    try:
        return shlex.split(text), rest
    except ValueError as error:
        raise ValueError(f"-e {NAME}={text}: {str(error).lower()}; quotes come in pairs") from None
