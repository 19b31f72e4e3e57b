"""The most requests that ran at once on each worker, seen for a while: `python watch_workers.py SECONDS METRIC URL…`.

METRIC is the gauge of running requests, a URL a supervisor's metrics page. Where the network enforces policies a client
is kept from them; the answer is then null for each.
"""

from __future__ import annotations

import json
import re
import sys
import time
import urllib.request


def main(seconds: float, metric: str, urls: list[str]) -> None:
    """Look five times a second."""
    running = re.compile(rf"^{metric}(?:\{{[^}}]*\}})? (\S+)".encode(), re.MULTILINE)
    most: dict[str, float | None] = dict.fromkeys(urls)
    end_s = time.monotonic() + seconds
    while time.monotonic() < end_s:
        for url in urls:
            try:
                with urllib.request.urlopen(url, timeout=2) as answer:
                    found = running.search(answer.read())
            except OSError:
                continue
            if found:
                most[url] = max(most[url] or 0.0, float(found[1]))
        time.sleep(0.2)
    print(json.dumps(most))


if __name__ == "__main__":
    main(float(sys.argv[1]), sys.argv[2], sys.argv[3:])
