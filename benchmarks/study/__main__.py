"""The command."""

from benchmarks.study.cli import main

if __name__ == "__main__":
    raise SystemExit(main())
