"""The same as `ddpm benchmark`."""

import sys

from ddpm_jax.cli import main

if __name__ == "__main__":
    sys.exit(main(["benchmark", *sys.argv[1:]]))
