"""Room for what is installed and written, on each file system the sum of what goes there."""

from __future__ import annotations

from collections.abc import Iterator

from .answer import Answer, Asked, Finding, error, warning

GIGABYTE_IN_KILOBYTES = 1e9 / 1024


def check(answer: Answer, asked: Asked) -> Iterator[Finding]:
    found = {path: words for path, *words in (line.split() for line in answer.lines("space"))}
    needs: dict[str, list[str]] = {}
    wanted: dict[str, float] = {}
    free: dict[str, float] = {}
    made = answer.lines("made")
    for entry in asked.space:
        path, words = str(entry["path"]), found.get(str(entry["path"]), [])
        if len(words) < 6:
            silent = error if path != asked.mends else warning
            yield silent(
                f"{path} does not answer within 5 s: look at the disk or share there (findmnt --target {path}), and at "
                "the machine that exports it"
            )
        elif entry.get("unless") not in made:
            mount = words[5]
            free[mount] = int(words[3]) / GIGABYTE_IN_KILOBYTES
            wanted[mount] = wanted.get(mount, 0) + float(entry["gigabytes"])
            needs.setdefault(mount, []).append(f"{entry['use']} in {path}")
    for mount, gigabytes in wanted.items():
        if free[mount] < gigabytes:
            yield error(
                f"{mount} has {free[mount]:.1f} GB free and needs {gigabytes:g} ({', '.join(needs[mount])}): free "
                "some, or set the path to a larger disk"
            )
