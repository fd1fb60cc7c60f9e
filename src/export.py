"""Write a trained network in other formats, as `isaseg export`: see `--help`."""

import sys

from isaseg.cli.export import main

if __name__ == "__main__":
    sys.exit(main())
