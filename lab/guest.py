"""`python3 -m lab.guest SOCKET COMMAND ...`: a command as root in a VM node, through the agent in it, without network.

Its output comes at its end, and it is handed no standard input.
"""

import sys
from pathlib import Path

from lab import qmp
from lab.config import LabError


def main(sock: str, *command: str) -> int:
    try:
        status, output, errors = qmp.execute(Path(sock), list(command))
    except LabError as problem:
        print(f"lab: {problem}; has the node booted? Its console is in the lab's log directory", file=sys.stderr)
        return 1
    sys.stdout.buffer.write(output)
    sys.stderr.buffer.write(errors)
    return status


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
