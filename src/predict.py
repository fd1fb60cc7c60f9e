"""Label images with a trained network, as `isaseg predict`: see `--help`."""

import sys

from isaseg.cli.predict import main

if __name__ == "__main__":
    sys.exit(main())
