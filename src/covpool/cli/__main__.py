"""`python -m covpool.cli`, the same as `covpool`."""

import sys

from covpool.cli import main

if __name__ == "__main__":
    sys.exit(main())
