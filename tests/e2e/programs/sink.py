"""Listens for a while and tells how many connections came: `python sink.py PORT SECONDS`. Runs in a pod."""

from __future__ import annotations

import json
import socket
import sys
import time


def main(port: int, seconds: float) -> None:
    """Say when it listens, and at the end who came."""
    callers: list[str] = []
    with socket.create_server(("0.0.0.0", port)) as listener:  # a stranger's own pod
        print("listening", flush=True)
        end_s = time.monotonic() + seconds
        while (left_s := end_s - time.monotonic()) > 0:
            listener.settimeout(left_s)
            try:
                connection, address = listener.accept()
            except TimeoutError:
                break
            callers.append(address[0])
            connection.close()
    print(json.dumps(callers))


if __name__ == "__main__":
    main(int(sys.argv[1]), float(sys.argv[2]))
