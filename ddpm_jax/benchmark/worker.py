"""PyTorch's turns in a process of their own, which is stopped while it is not its turn.

PyTorch's threads are fastest on CPU when they wait for work without sleeping (OMP_WAIT_POLICY=active), and would then take the
processor from whoever comes next.
"""

import contextlib
import multiprocessing
import os
import signal
from multiprocessing import resource_tracker
from typing import Any

from ddpm_jax import signals
from ddpm_jax.benchmark.timing import Facts
from ddpm_jax.benchmark.workload import What, Workload
from ddpm_jax.errors import UserError


class Worker:
    """A contender of `torch_side`, given one piece of work after the other. Use as a context manager."""

    def __init__(self, name: str, device: str):
        context = multiprocessing.get_context("spawn")
        self._connection, theirs = context.Pipe()
        self._process = context.Process(target=_serve, args=(theirs, name, device), daemon=True)
        self._stack = contextlib.ExitStack()
        before = os.environ.get("OMP_WAIT_POLICY")
        os.environ["OMP_WAIT_POLICY"] = before or "active"
        try:
            with signals.undivided(), signals.blocked():  # the worker's as well: it ends when this process ends it
                resource_tracker.ensure_running()  # which unblocks them, in Python 3.11
                with signals.blocked():
                    self._process.start()
                self._stack.enter_context(signals.undone(self._process.kill))
        finally:
            if before is None:
                del os.environ["OMP_WAIT_POLICY"]
        theirs.close()  # so that a worker that dies is noticed
        self.examples = 0
        """See `timing.Contender`."""

    def prepare(self, work: Workload, what: What) -> None:
        """Give it a piece of work; the one before is dropped.

        Raises:
            UserError: the contender has no such work.
            RuntimeError: what PyTorch raised, such as that memory does not suffice.
        """
        self.examples = self._ask((work, what))

    def __enter__(self) -> "Worker":
        return self

    def __exit__(self, *_: object) -> None:
        self._process.kill()
        self._process.join()
        self._stack.close()
        self._connection.close()

    def seconds(self, turn: float = 0.0) -> float:
        """See `timing.Contender`."""
        return self._ask(turn)

    def facts(self) -> Facts:
        """See `Call.facts`."""
        return self._ask("facts")

    def _ask(self, question: Any) -> Any:
        self._signal("SIGCONT")
        self._connection.send(question)
        try:
            answer = self._connection.recv()
        except EOFError:
            raise RuntimeError("out of memory, by the look of it: PyTorch's process was killed.") from None
        self._signal("SIGSTOP")
        if isinstance(answer, Exception):
            raise answer
        return answer

    def _signal(self, name: str) -> None:
        if hasattr(signal, name):  # not on Windows, where it goes on waiting
            os.kill(self._process.pid or 0, getattr(signal, name))


def _serve(connection: Any, name: str, device: str) -> None:
    """In the worker's process: do as asked until the parent is gone."""
    from ddpm_jax.benchmark import torch_side

    call: Any = None
    while True:
        try:
            question = connection.recv()
        except EOFError:
            return
        try:
            if isinstance(question, float):
                answer: Any = call.seconds(question)
            elif question == "facts":
                answer = call.facts()
            else:
                work, what = question
                call = None
                torch_side.set_precision(work.precision)
                call = torch_side.TorchSide(name, work, device).call(what)
                answer = call.examples
        except UserError as error:
            answer = error
        except Exception as error:  # told to the parent, whatever it is
            answer = RuntimeError(f"{type(error).__name__}: {error}")
        connection.send(answer)
