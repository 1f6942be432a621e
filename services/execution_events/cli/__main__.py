import sys

from execution_events.cli.main import main

sys.exit(main())
