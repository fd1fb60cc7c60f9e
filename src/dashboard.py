"""Compare runs in W&B: `python src/dashboard.py entity=me`, or offline in the terminal, `runs=outputs`."""

import sys

from isaseg.cli.dashboard import main

if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
