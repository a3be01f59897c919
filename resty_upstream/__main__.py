"""``python -m resty_upstream``: the command ``resty-upstream``."""

import sys

from resty_upstream.cli import main

if __name__ == "__main__":
    sys.exit(main())
