"""The rendezvous store: a c10d TCPStore server that outlives every job and every training node.

Usage: store.py ADDRESS PORT. The torchrun agents of all jobs meet here (torchrun --rdzv-backend=c10d
--rdzv-endpoint=ADDRESS:PORT --rdzv-conf=is_host=0). Left to torchrun, the store would live inside the agent of one
training node and die with it.
"""

from __future__ import annotations

import os
import signal
import socket
import sys
from datetime import timedelta

from torch.distributed import TCPStore


def listening_socket(address: str, port: int) -> socket.socket:
    """Listen on this one address; TCPStore by itself would listen on all of them."""
    server = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    server.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    # At boot the unit may be quicker than the network: bind although the address is not there yet.
    server.setsockopt(socket.IPPROTO_IP, getattr(socket, "IP_FREEBIND", 15), 1)
    server.bind((address, port))
    server.listen(1024)
    return server


def tell_systemd(state: str) -> None:
    """Send one sd_notify message, where systemd asked for it."""
    if path := os.environ.get("NOTIFY_SOCKET"):
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as notify:
            notify.connect("\0" + path[1:] if path.startswith("@") else path)
            notify.sendall(state.encode())


def main() -> None:
    address, port = sys.argv[1], int(sys.argv[2])
    server = listening_socket(address, port)
    store = TCPStore(
        address,
        port,
        is_master=True,
        wait_for_workers=False,
        timeout=timedelta(seconds=60),
        master_listen_fd=server.detach(),
    )
    tell_systemd("READY=1")
    print(f"rendezvous store on {store.host}:{store.port}", flush=True)
    signal.sigwait({signal.SIGTERM, signal.SIGINT})


if __name__ == "__main__":
    main()
