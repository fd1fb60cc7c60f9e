"""Try a trained network on a web page of this machine, as `isaseg demo`: see `--help`."""

import sys

from isaseg.cli.demo import main

if __name__ == "__main__":
    sys.exit(main())
