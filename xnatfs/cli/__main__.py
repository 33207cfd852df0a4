"""python -m xnatfs.cli: our xnatctl, whoever's script of that name is on PATH."""

import sys

from xnatfs.cli import main_xnatctl

sys.exit(main_xnatctl())
