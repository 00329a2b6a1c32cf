"""`python -m microgpt_cli`: the same as the command `microgpt`."""

import sys

from microgpt_cli.cli.main import main

sys.exit(main())
