"""Compare the context modules on embedded data, over several seeds; ends with a table and two figures."""

import sys

from isaseg.cli.ablation import main

if __name__ == "__main__":
    sys.exit(main())
