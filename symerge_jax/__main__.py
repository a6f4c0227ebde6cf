"""`python -m symerge_jax COMMAND …`, the same as the console script `symerge`."""

import sys

from symerge_jax.cli import main

if __name__ == "__main__":
    sys.exit(main())
