"""The program `ddpm`, also as `python -m ddpm_jax`: from its first line on, Ctrl-C and SIGTERM end it in order."""

import sys

from ddpm_jax import signals


def main(argv: list[str] | None = None) -> int:
    """Run a command as this process's own; returns its exit status. `ddpm_jax.cli.main` is the same for callers within Python."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    blocked = signals.block()
    from ddpm_jax.huge_pages import restart_with_huge_pages

    if arguments and not {"-h", "--help", "--help-all", "--version"}.intersection(arguments):
        restart_with_huge_pages()
    if blocked:
        signals.watch()
    status = 1
    try:
        from ddpm_jax import cache, cli

        with signals.undone(cache.finish_program):
            status = cli.main(arguments)
    except SystemExit as error:  # tyro's, after --help or a mistake
        status = int(error.code or 0)
    finally:
        signals.done(status)
    return status


if __name__ == "__main__":
    sys.exit(main())
