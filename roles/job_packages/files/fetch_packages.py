"""Find out which packages a job needs besides the locked ones, and fetch those once for all nodes.

    python fetch_packages.py REQUIREMENTS LOCK WHEELS DIRECTORY UV PIP PYTHON

WHEELS is where the files of the locked packages lie, if they are there; no index is asked for those then. DIRECTORY
gets pins.txt, wheels/ and, last, `complete`. Packages that come as sources are built here. Exit 2 with one line when
they do not go with the lock, or cannot be had. The environment says where to look, as pip and uv read it.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path


def name_of(line: str) -> str:
    """The package of a pin, in the one spelling that counts."""
    return re.sub(r"[-_.]+", "-", re.split(r"[^A-Za-z0-9._-]", line, maxsplit=1)[0]).lower()


def resolve(requirements: str, lock: str, uv: str, python: str) -> list[str]:
    """Pins of all that has to be there besides the lock. SystemExit where the lock forbids it."""
    command = [uv, "pip", "compile", "--quiet", "--no-header", "--no-annotate", "--python", python]
    command += ["--no-index"] if os.environ.get("PIP_NO_INDEX") else []  # uv has no variable for it
    done = subprocess.run([*command, "--constraint", lock, requirements], capture_output=True, text=True)
    if done.returncode:
        refuse("the extra packages do not go with the locked environment", done.stderr)
    locked = {name_of(line) for line in Path(lock).read_text().splitlines() if re.match(r"[A-Za-z0-9]", line)}
    pins = [line for line in done.stdout.splitlines() if re.match(r"[A-Za-z0-9]", line)]
    return [pin for pin in pins if name_of(pin) not in locked]


def refuse(what: str, said: str) -> None:
    lines = [
        re.sub(r"^\W*(?:error|cause|hint):\s*", "", line, flags=re.IGNORECASE).strip() for line in said.splitlines()
    ]
    because = next((line for line in lines if line.startswith("Because")), "")
    print(f"{what}: {because or ' '.join(filter(None, lines))[-400:] or 'no reason was given'}", file=sys.stderr)
    sys.exit(2)


def main(requirements: str, lock: str, wheels: str, directory: str, uv: str, pip: str, python: str) -> None:
    place = Path(directory)
    partial = place.with_name(f".{place.name}.{os.getpid()}.partial")
    with tempfile.TemporaryDirectory() as cache:
        os.environ |= {"UV_CACHE_DIR": cache, "PIP_CACHE_DIR": f"{cache}/pip", "HOME": cache, "NO_COLOR": "1"}
        if Path(wheels).is_dir():
            os.environ["UV_FIND_LINKS"] = ",".join(filter(None, [os.environ.get("UV_FIND_LINKS"), wheels]))
        pins = resolve(requirements, lock, uv, python)
        shutil.rmtree(partial, ignore_errors=True)
        (partial / "wheels").mkdir(parents=True)
        (partial / "pins.txt").write_text("".join(f"{pin}\n" for pin in pins))
        if pins:
            options = ["wheel", "--quiet", "--no-deps", "--wheel-dir", partial / "wheels", "-r", partial / "pins.txt"]
            done = subprocess.run(
                [pip, "--disable-pip-version-check", "--python", python, *options], capture_output=True, text=True
            )
            if done.returncode:
                shutil.rmtree(partial)
                refuse("the extra packages cannot be fetched", done.stderr)
    (partial / "complete").touch()
    shutil.rmtree(place, ignore_errors=True)
    partial.rename(place)
    print(" ".join(pins) or "nothing: the locked environment has all of it")


if __name__ == "__main__":
    main(*sys.argv[1:])
