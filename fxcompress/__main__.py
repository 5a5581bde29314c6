"""``python -m fxcompress``: the command line."""

import sys

from fxcompress.cli import main

if __name__ == "__main__":
    sys.exit(main())
