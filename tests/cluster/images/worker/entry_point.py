#!/usr/bin/python3
"""Runs the mounted environment's command of this file's name: its own commands name an interpreter that is not here."""

import sys
from importlib.metadata import entry_points
from pathlib import Path

NAME = Path(sys.argv[0]).name
sys.exit(entry_points(group="console_scripts")[NAME].load()())
