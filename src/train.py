"""Train a segmentation network, as `isaseg train`: see `--help`."""

import sys

from isaseg.cli.train import main

if __name__ == "__main__":
    sys.exit(main())
