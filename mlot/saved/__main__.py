"""``python -m mlot.saved``."""

import sys

from mlot.saved.cli import main

if __name__ == "__main__":
    sys.exit(main())
