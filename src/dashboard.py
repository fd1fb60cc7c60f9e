"""Compare runs in W&B or in the terminal, as `isaseg dashboard`: see `--help`."""

import sys

from isaseg.cli.dashboard import main

if __name__ == "__main__":
    sys.exit(main())
