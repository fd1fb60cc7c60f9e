"""Write a trained network in other formats: `python src/export.py checkpoint=FILE output=DIR`."""

import sys

from isaseg.cli.export import main

if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
