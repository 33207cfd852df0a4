"""Run xnatctl as `python -m xnatfs.cli`, whichever script of that name is on PATH."""

import sys

from xnatfs.cli import main_xnatctl

sys.exit(main_xnatctl())
