"""`-e output=FILE`: what a verb has to say, as one JSON document on this machine."""

from __future__ import annotations

import datetime
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ansible.errors import AnsibleActionFail


def write(output: str, verb: str, content: Mapping[str, Any]) -> None:
    """Write the document, if one is wanted; the file appears whole or not at all.

    A new one is its owner's alone: settings of a job may hold a proxy's password.
    """
    if not output:
        return
    file = Path(output).expanduser().resolve()  # of a link the file that it leads to
    head = {"verb": verb, "time": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")}
    temporary = file.with_name(f".{file.name}.part")
    try:
        temporary.touch(mode=0o600)
        if file.exists():  # who may read it has been said already
            temporary.chmod(file.stat().st_mode & 0o777)
        temporary.write_text(json.dumps(head | dict(content), indent=2) + "\n", encoding="utf-8")
        temporary.replace(file)
    except OSError as error:
        raise AnsibleActionFail(f"output={output}: cannot be written ({error.strerror}); write another path") from None
