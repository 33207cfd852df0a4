"""Run xnatfs as `python -m xnatfs`."""

import sys

from xnatfs.cli import main

sys.exit(main())
