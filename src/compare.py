"""Compare runs: tables, figures and one page, from run folders alone; no account, no network, no training."""

import sys

from isaseg.cli.compare import main

if __name__ == "__main__":
    sys.exit(main())
