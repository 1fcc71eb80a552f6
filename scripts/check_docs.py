"""Run the blocks of the documentation that are marked as runnable; exit status 1 when one fails.

A mark is a comment on the line above the fence: `<!-- run -->`, or `<!-- run: s/OLD/NEW/ -->` to shorten the block first
(another sign may stand in for the slash; several: separated by " ; "). The blocks of a page run in order in one temporary
folder: `sh` by bash, which stops at the first command that fails, `python` as a script each.
"""

import argparse
import os
import re
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
MARK = re.compile(r"^<!-- run\b(?:: (?P<changes>.*?))? *-->\n(?:```(?P<kind>\w+)\n(?P<code>.*?)^```$)?", re.M | re.S)
RUNNERS = {"sh": ("bash", "-eu", "-o", "pipefail"), "python": (sys.executable,)}


@dataclass(frozen=True)
class Block:
    """A block that runs: where it stands, and what is run."""

    page: Path
    line: int
    kind: str
    code: str


def pages() -> list[Path]:
    """Every page with a marked block, the README first."""
    found = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md")), *sorted((ROOT / "examples").glob("*.md"))]
    return [page for page in found if MARK.search(page.read_text())]


def blocks(page: Path) -> list[Block]:
    """The marked blocks of a page, shortened as their marks say.

    Raises:
        ValueError: a mark above something else than a block of sh or python, or a replacement for what the block does not hold.
    """
    text, found = page.read_text(), []
    for match in MARK.finditer(text):
        line = text.count("\n", 0, match.start()) + 2
        kind, code = match["kind"], match["code"]
        if kind not in RUNNERS:
            raise ValueError(f"{page}:{line}: a block marked to run must be one of {', '.join(RUNNERS)}; got {kind}.")
        for change in filter(None, (match["changes"] or "").split(" ; ")):
            parts = change.strip().split(change.strip()[1:2] or "/")
            if len(parts) != 4 or parts[0] != "s" or parts[3]:
                raise ValueError(f"{page}:{line}: a replacement must be s/OLD/NEW/; got {change!r}.")
            if parts[1] not in code:
                raise ValueError(f"{page}:{line}: the block does not hold {parts[1]!r}, which its mark replaces.")
            code = code.replace(parts[1], parts[2])
        found.append(Block(page, line, kind, code))
    return found


def run(block: Block, folder: Path, timeout_s: float) -> subprocess.CompletedProcess[str]:
    """Run a block in a folder, this Python's commands first on the path."""
    script = folder / f".block.{block.kind}"
    script.write_text(block.code)
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")])
    command = [*RUNNERS[block.kind], str(script)]
    return subprocess.run(
        command,
        cwd=folder,
        env=os.environ | {"PATH": path},
        timeout=timeout_s,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )


def check(page: Path, timeout_s: float) -> bool:
    """Run the blocks of a page, and print how each went; stops at the first that fails, for later ones build on it."""
    with tempfile.TemporaryDirectory() as folder:
        for block in blocks(page):
            begun = time.perf_counter()
            done = run(block, Path(folder), timeout_s)
            where = f"{page.relative_to(ROOT)}:{block.line}"
            print(
                f"{'ok  ' if done.returncode == 0 else 'FAIL'} {where}, {time.perf_counter() - begun:.0f} s", flush=True
            )
            if done.returncode:
                print(f"{block.code}\n--- exit status {done.returncode}\n{done.stdout}", flush=True)
                return False
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
