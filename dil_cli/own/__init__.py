"""Python files of a user's own as modules, in the processes that a parallel sweep starts: `dil_cli.own.mine`.

The sweep has run them (`config/custom.py`, which asks the command line first) and names their folders in the
environment. What it sends to its processes refers to their classes, and Python looks them up here.
"""

from __future__ import annotations

import os
import sys

from dil_cli.config.custom import FOLDERS

__path__ = [folder for folder in os.environ.get(FOLDERS, "").split(os.pathsep) if folder]
sys.dont_write_bytecode = True  # nothing of ours beside the user's files
