"""``python -m mlot.distill``."""

import sys

from mlot.distill.cli import main

if __name__ == "__main__":
    sys.exit(main())
