"""Check, prepare or cache a data set, as `isaseg data`: see `--help`."""

import sys

from isaseg.cli.data import main

if __name__ == "__main__":
    sys.exit(main())
