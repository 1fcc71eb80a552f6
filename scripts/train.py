"""`ddpm train` for those who prefer a script: python scripts/train.py … takes the same arguments."""

import sys

from ddpm_jax.__main__ import main

if __name__ == "__main__":
    sys.exit(main(["train", *sys.argv[1:]]))
