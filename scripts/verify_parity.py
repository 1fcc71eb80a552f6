"""`ddpm verify` for those who prefer a script: python scripts/verify_parity.py … takes the same arguments."""

import sys

from ddpm_jax.__main__ import main

if __name__ == "__main__":
    sys.exit(main(["verify", *sys.argv[1:]]))
