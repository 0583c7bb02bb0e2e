"""Which of these machines small packets reach and large ones do not. Only Python's own library, and ping.

python3 large.py MTU ADDRESS... prints the addresses, one line each. One that answers to neither is not one of them: it
is off, or says nothing to a ping, and nothing is known of its packets.
"""

import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

HEADERS = 28  # of IPv4 and ICMP, in bytes, which count to the MTU
SMALL = 56


def answers(address, size):
    """Whether a packet of `size` bytes of payload comes back in one piece."""
    command = ["ping", "-4", "-n", "-q", "-c", "3", "-i", "0.2", "-W", "2", "-M", "do", "-s", str(size), address]
    return subprocess.run(command, capture_output=True, check=False).returncode == 0


def main():
    mtu, *addresses = sys.argv[1:]
    if not shutil.which("ping"):
        return
    with ThreadPoolExecutor(16) as pool:
        lost = pool.map(lambda each: answers(each, SMALL) and not answers(each, int(mtu) - HEADERS), addresses)
        print("\n".join(address for address, is_lost in zip(addresses, lost, strict=True) if is_lost))


if __name__ == "__main__":
    main()
