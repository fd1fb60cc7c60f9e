"""Check, prepare or cache a data set: `python src/data.py check data=cityscapes data.root=/path/to/it`."""

import sys

from isaseg.cli.data import main

if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
