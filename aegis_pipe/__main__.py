"""`python -m aegis_pipe`: the same as the `aegis-pipe` command."""

import sys

from aegis_pipe.cli import main

sys.exit(main())
