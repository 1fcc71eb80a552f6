"""Run the blocks of the documentation that are marked as runnable; exit status 1 when one fails.

A mark is a comment on the line above the fence: `<!-- run -->`, or `<!-- run: s/OLD/NEW/ -->` to shorten the block first
(another sign may stand in for the slash; several: separated by " ; "). The blocks of a page run in order in one temporary
folder: `sh` by bash, which stops at the first command that fails, `python` as a script each.

Above tabs, `=== "JAX"` and those that follow it, the mark is `<!-- run: within 1e-5 -->`: each tab holds one block, all of
them run, and each must print the numbers that the one before it prints, to this relative error. So must a block of `text`
below them, which shows what they print.
"""

import argparse
import math
import os
import re
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
MARK = re.compile(r"^<!-- run\b(?:: (?P<asked>.*?))? *-->\n", re.M)
FENCE = re.compile(r"^(?P<indent> *)```(?P<kind>\w+)\n(?P<code>.*?)^(?P=indent)```$", re.M | re.S)
TAB = re.compile(r'=== ".+"\n(?P<body>(?: {4}.*\n|\n)*)')
NUMBER = re.compile(r"(?<![\w.])[-+]?(?:\d+\.?\d*|\.\d+|nan\b|inf\b)(?:e[-+]?\d+)?", re.I)
RUNNERS = {"sh": ("bash", "-eu", "-o", "pipefail"), "python": (sys.executable,), "text": ("cat",)}


@dataclass(frozen=True)
class Block:
    """A block that runs: where it stands, and what is run."""

    page: Path
    line: int
    kind: str
    code: str
    within: float | None = None
    """To which relative error it prints the numbers that the block before it prints; None: it need not."""


def pages() -> list[Path]:
    """Every page with a marked block, the README first."""
    found = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md")), *sorted((ROOT / "examples").glob("*.md"))]
    return [page for page in found if MARK.search(page.read_text())]


def blocks(page: Path) -> list[Block]:
    """The marked blocks of a page, shortened as their marks say.

    Raises:
        ValueError: a mark above something else than a block of sh or python, or tabs of them; a replacement of what none holds;
            tabs without an error that is allowed, or one without tabs.
    """
    text, found = page.read_text(), []
    for mark in MARK.finditer(text):
        where = f"{page}:{text.count(chr(10), 0, mark.end()) + 1}"
        asked = [part.strip() for part in (mark["asked"] or "").split(" ; ") if part.strip()]
        shown = _shown(text, mark.end())
        kinds = [fence["kind"] for fence in shown]
        if not kinds or kinds[0] == "text" or not RUNNERS.keys() >= set(kinds):
            raise ValueError(
                f"{where}: a block marked to run must be one of sh, python; got {', '.join(kinds) or None}."
            )
        allowed = [float(part.removeprefix("within ")) for part in asked if part.startswith("within ")]
        if len(allowed) != (len(shown) > 1):
            raise ValueError(
                f"{where}: a mark says `within`, once, above tabs of two blocks and more, and nowhere else."
            )
        codes = [re.sub(f"^{fence['indent']}", "", fence["code"], flags=re.M) for fence in shown]
        for change in asked:
            if not change.startswith("within "):
                codes = _changed(codes, change, where)
        for number, (fence, code) in enumerate(zip(shown, codes, strict=True)):
            line = text.count("\n", 0, fence.start()) + 1
            found.append(Block(page, line, fence["kind"], code, allowed[0] if number else None))
    return found


def _shown(text: str, start: int) -> list[re.Match[str]]:
    """The block that begins at a place, or the first one of each tab that begins there and the text below them."""
    if fence := FENCE.match(text, start):
        return [fence]
    found = []
    while tab := TAB.match(text, start):
        found.append(FENCE.search(text, *tab.span("body")))
        start = tab.end()
    below = FENCE.match(text, start)
    found += [below] if below and below["kind"] == "text" else []
    return [fence for fence in found if fence]


def _changed(codes: list[str], change: str, where: str) -> list[str]:
    """The blocks with a replacement made, in those that hold what is replaced."""
    parts = change.split(change[1:2] or "/")
    if len(parts) != 4 or parts[0] != "s" or parts[3]:
        raise ValueError(f"{where}: a replacement must be s/OLD/NEW/; got {change!r}.")
    if not any(parts[1] in code for code in codes):
        raise ValueError(f"{where}: the block does not hold {parts[1]!r}, which its mark replaces.")
    return [code.replace(parts[1], parts[2]) for code in codes]


def run(block: Block, folder: Path, timeout_s: float) -> subprocess.CompletedProcess[str]:
    """Run a block in a folder, this Python's commands first on the path."""
    script = folder / f".block.{block.kind}"
    script.write_text(block.code)
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")])
    command = [*RUNNERS[block.kind], str(script)]
    environment = os.environ | {"PATH": path}
    return subprocess.run(command, cwd=folder, env=environment, timeout=timeout_s, text=True, capture_output=True)


def apart(said: str, other: str, within: float) -> str:
    """What distinguishes the numbers that two blocks print; empty: nothing does, to a relative error."""
    ours, theirs = NUMBER.findall(said), NUMBER.findall(other)
    if not ours or len(ours) != len(theirs):
        return f"it prints {len(ours)} numbers, the tab before it {len(theirs)}"
    for one, two in zip(ours, theirs, strict=True):
        if not math.isclose(float(one), float(two), rel_tol=within):
            return f"it prints {one} where the tab before it prints {two}, which is more than {within:g} apart"
    return ""


def check(page: Path, timeout_s: float) -> bool:
    """Run the blocks of a page, and print how each went; stops at the first that fails, for later ones build on it."""
    before = ""
    with tempfile.TemporaryDirectory() as folder:
        for block in blocks(page):
            begun = time.perf_counter()
            done = run(block, Path(folder), timeout_s)
            fault = f"exit status {done.returncode}" if done.returncode else ""
            if not fault and block.within is not None:
                fault = apart(done.stdout, before, block.within)
            where = f"{page.relative_to(ROOT)}:{block.line}"
            print(f"{'FAIL' if fault else 'ok  '} {where}, {time.perf_counter() - begun:.0f} s", flush=True)
            if fault:
                print(f"{block.code}\n--- {fault}\n{done.stdout}{done.stderr}", flush=True)
                return False
            before = done.stdout
    return True


def main() -> int:
    """Check the pages that are named, or all."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("pages", nargs="*", type=Path, help="pages; all with a marked block unless given")
    parser.add_argument("--timeout", type=float, default=900, metavar="SECONDS", help="for each block")
    args = parser.parse_args()
    for page in args.pages:
        if not page.is_file():
            parser.error(f"pages must be files; got {page}")
    try:
        results = [check(page.resolve(), args.timeout) for page in args.pages or pages()]
    except (ValueError, subprocess.TimeoutExpired) as error:
        print(error, file=sys.stderr)
        return 1
    return 0 if all(results) else 1


if __name__ == "__main__":
    sys.exit(main())
