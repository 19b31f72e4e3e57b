#!/usr/bin/python3
"""Runs the command of the mounted environment that has this file's name: the environment's own ones name its interpreter."""

import sys
from importlib.metadata import entry_points
from pathlib import Path

NAME = Path(sys.argv[0]).name
sys.exit(entry_points(group="console_scripts")[NAME].load()())
