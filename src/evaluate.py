"""Score a trained network: `python src/evaluate.py checkpoint=FILE data=cityscapes data.root=/path/to/it`."""

import sys

from isaseg.cli.evaluate import main

if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
