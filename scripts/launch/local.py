"""Several processes of one command on this machine: python scripts/launch/local.py --processes 2 -- train digits --out runs/digits.

They find each other over the loopback interface. When one fails, the others are ended; Ctrl-C is passed on to all of them.
"""

import argparse
import os
import signal
import socket
import subprocess
import sys
import time

GRACE = 10.0
"""Seconds that a process asked to end is given before it is killed."""


def main() -> int:
    """Start the processes and wait for them; returns the exit status of the first that failed, or 0."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--processes", type=int, default=2, help="how many (default: 2)")
    parser.add_argument("--port", type=int, default=0, help="of process 0 (default: a free one)")
    parser.add_argument("command", nargs=argparse.REMAINDER, help="of ddpm, after --: train digits --out runs/digits")
    args = parser.parse_args()
    command = args.command[1:] if args.command[:1] == ["--"] else args.command
    if args.processes < 1 or not command:
        parser.error("it takes --processes of at least 1, and after -- a command of ddpm")
    return run(command, args.processes, args.port or free_port())


def run(command: list[str], count: int, port: int) -> int:
    """As `main`, with the arguments read."""
    found = {"JAX_COORDINATOR_ADDRESS": f"127.0.0.1:{port}", "JAX_NUM_PROCESSES": str(count)}
    processes = [
        # in sessions of their own: a terminal's Ctrl-C reaches them through this process alone, and so once
        subprocess.Popen(
            [sys.executable, "-m", "ddpm_jax", *command],
            env=os.environ | found | {"JAX_PROCESS_ID": str(index)},
            start_new_session=True,
        )
        for index in range(count)
    ]

    def pass_on(number: int, _: object) -> None:
        for process in processes:
            process.send_signal(number)  # does nothing to one that has ended

    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, pass_on)
    try:
        while any(process.poll() is None for process in processes):
            failed = [process for process in processes if process.poll()]
            if failed:
                end(processes)
                return status(failed[0])
            time.sleep(0.05)
    finally:
        for process in processes:
            process.kill()
    return next((status(process) for process in processes if process.returncode), 0)


def end(processes: list[subprocess.Popen[bytes]]) -> None:
    """Ask the processes to end, and kill those that have not after GRACE seconds."""
    for process in processes:
        process.terminate()
    deadline = time.monotonic() + GRACE
    for process in processes:
        try:
            process.wait(max(0.0, deadline - time.monotonic()))
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def status(process: subprocess.Popen[bytes]) -> int:
    """As a shell says it: 128 + n for a process that signal n ended."""
    return process.returncode if process.returncode >= 0 else 128 - process.returncode


def free_port() -> int:
    """A port of the loopback interface that nobody uses just now."""
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return int(sock.getsockname()[1])


if __name__ == "__main__":
    sys.exit(main())
