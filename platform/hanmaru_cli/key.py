"""`hanmaru key new`: makes an API key, and the hash of it that a tenants file holds.

The key is printed once and kept nowhere. `hanmaru key hash` reads a key from standard input, never from the
command line, where other users of the machine would see it.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from hanmaru_contracts.keys import api_key_digest, new_api_key


def main(arguments: Sequence[str]) -> int:
    """Run with the words after `hanmaru key`; returns the exit code."""
    parser = argparse.ArgumentParser(prog="hanmaru key", description="Make API keys.")
    commands = parser.add_subparsers(required=True, metavar="new|hash")
    commands.add_parser("new", help="print a fresh key and its SHA-256").set_defaults(run=_new)
    commands.add_parser("hash", help="print the SHA-256 of the key on standard input").set_defaults(run=_hash)
    run = parser.parse_args(arguments).run
    return int(run())


def _new() -> int:
    key = new_api_key()
    print(f"key     {key}")
    print(f"sha256  {api_key_digest(key)}")
    print(
        "The key is shown this once. Give it to its user, and the hash to the tenants file (apiKey.sha256).",
        file=sys.stderr,
    )
    return 0


def _hash() -> int:
    key = sys.stdin.readline().strip()
    if not key:
        print("hanmaru key hash: standard input is empty; pipe the key into it", file=sys.stderr)
        return 2
    print(api_key_digest(key))
    return 0
