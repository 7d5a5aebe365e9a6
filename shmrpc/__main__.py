"""``python -m shmrpc``: the command line."""

import sys

from shmrpc.cli import main

sys.exit(main())
