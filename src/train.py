"""Train a segmentation network: `python src/train.py experiment=lamps_isa attention=dense seed=1`."""

import sys

from isaseg.cli.train import main

if __name__ == "__main__":
    sys.exit(main())
