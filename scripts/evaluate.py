"""`ddpm evaluate` for those who prefer a script: python scripts/evaluate.py … takes the same arguments."""

import sys

from ddpm_jax.__main__ import main

if __name__ == "__main__":
    sys.exit(main(["evaluate", *sys.argv[1:]]))
