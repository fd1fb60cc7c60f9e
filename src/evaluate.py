"""Score a trained network, as `isaseg evaluate`: see `--help`."""

import sys

from isaseg.cli.evaluate import main

if __name__ == "__main__":
    sys.exit(main())
