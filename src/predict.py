"""Label pictures with a trained network: `python src/predict.py checkpoint=FILE input=FOLDER output=DIR`."""

import sys

from isaseg.cli.predict import main

if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
