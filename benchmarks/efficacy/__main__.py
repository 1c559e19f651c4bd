"""Entry point of ``python -m benchmarks.efficacy``."""

import sys

from benchmarks.efficacy.cli import main

if __name__ == "__main__":
    sys.exit(main())
