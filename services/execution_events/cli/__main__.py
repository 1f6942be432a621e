"""Run the command line: `python -m execution_events.cli`."""

import sys

from execution_events.cli.main import main

sys.exit(main())
