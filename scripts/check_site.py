"""Look at every page of the built site in a headless browser, wide and narrow; exit status 1 when one is not right.

The site is served on this machine, and nothing else may be asked for. `make docs` builds it, `make check-site` does both; needed:
Chromium or Chrome, and the extra `site`. What is looked for within a page stands in scripts/check_site.js.
"""

import argparse
import functools
import http.server
import shutil
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import urlsplit

from playwright.sync_api import Browser, ConsoleMessage, Error, Page, Request, Response, Route, sync_playwright

ROOT = Path(__file__).resolve().parents[1]
LOOK = (Path(__file__).parent / "check_site.js").read_text()
WIDTHS = (1280, 390)  # a small laptop, a telephone
BROWSERS = ("chromium", "chromium-browser", "google-chrome", "chrome")
FLAGS = (
    "--no-sandbox",  # the pages are ours, and as root there is none
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
)
TYPESET = "() => !document.querySelector('.arithmatex') || window.MathJax?.startup?.promise?.then(() => true)"
SEARCHED = "guidance"  # a word that the pages hold


def pages(site: Path) -> list[str]:
    """The addresses of a built site's pages, below its root.

    Raises:
        FileNotFoundError: there are none.
    """
    found = sorted(path.relative_to(site).as_posix() for path in site.rglob("*.html"))
    if not found:
        raise FileNotFoundError(f"The site must be built first, with `make docs`: {site} holds no pages.")
    return [name.removesuffix("index.html") for name in found]


@contextmanager
def served(site: Path) -> Iterator[str]:
    """Serve a folder on this machine; gives its address."""

    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, format: str, *args: object) -> None:
            pass

    class Server(http.server.ThreadingHTTPServer):
        def handle_error(self, request: object, client_address: object) -> None:
            if not isinstance(sys.exception(), ConnectionError):  # a browser that leaves a page drops what it asked for
                super().handle_error(request, client_address)  # type: ignore[arg-type]

    with Server(("127.0.0.1", 0), functools.partial(Quiet, directory=str(site))) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        try:
            yield f"http://127.0.0.1:{server.server_port}"
        finally:
            server.shutdown()


def is_elsewhere(address: str, home: str) -> bool:
    """Whether a request leaves the site: other hosts and other ports of this one; data within the page does not."""
    there = urlsplit(address)
    return there.scheme not in {"data", "blob", "about"} and f"{there.scheme}://{there.netloc}" != home


class Visit:
    """A browser's page, and the faults that show while pages are loaded in it."""

    def __init__(self, browser: Browser, home: str, width: int) -> None:
        self.home, self.faults = home, list[str]()
        self.page: Page = browser.new_page(viewport={"width": width, "height": 900})
        self.page.route("**/*", self._let_through)
        self.page.on("console", self._heard)
        self.page.on("pageerror", lambda error: self.faults.append(f"error in a script: {error}"))
        self.page.on("response", self._answered)

    def _let_through(self, route: Route, request: Request) -> None:
        if is_elsewhere(request.url, self.home):
            self.faults.append(f"asks elsewhere: {request.url}")
            route.abort()
        else:
            route.continue_()

    def _heard(self, message: ConsoleMessage) -> None:
        if message.type in {"error", "warning"} and "Failed to load resource" not in message.text:
            self.faults.append(f"console: {message.text}")

    def _answered(self, response: Response) -> None:
        if response.status >= 400:
            self.faults.append(f"status {response.status}: {response.url}")

    def look(self, name: str) -> list[str]:
        """The faults of a page."""
        self.faults.clear()
        try:
            self.page.goto(f"{self.home}/{name}", wait_until="networkidle")
            self.page.wait_for_function(TYPESET, timeout=20_000)
        except Error as error:
            self.faults.append(f"not loaded: {error.message.splitlines()[0]}")
        return [*self.faults, *self.page.evaluate(LOOK)]

    def search(self, word: str) -> list[str]:
        """The faults of a search from the start page: no answer, or a first one that does not hold the word."""
        self.faults.clear()
        self.page.goto(f"{self.home}/", wait_until="networkidle")
        try:
            opener = self.page.locator("label[for=__search].md-header__button")  # of narrow pages
            (opener if opener.is_visible() else self.page.locator("input.md-search__input")).click()
            self.page.locator("input.md-search__input:focus").wait_for()
            self.page.keyboard.type(word, delay=20)
            answer = self.page.locator("a.md-search-result__link").first
            answer.click(timeout=20_000)
            self.page.wait_for_load_state("networkidle")
            if word not in self.page.locator("article").inner_text().lower():
                self.faults.append(f"the first answer to {word!r} does not hold it: {self.page.url}")
        except Error as error:
            self.faults.append(f"no answer to {word!r}: {error.message.splitlines()[0]}")
        return list(self.faults)


def check(site: Path, names: list[str], executable: str | None, word: str = SEARCHED) -> list[str]:
    """The faults of pages at all widths, and of the search; each is printed as it is found."""
    found: list[str] = []

    def tell(where: str, faults: list[str]) -> None:
        for fault in faults:
            found.append(f"{where}: {fault}")
            print(found[-1], flush=True)

    with served(site) as home, sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=executable, args=FLAGS)
        for width in WIDTHS:
            visit = Visit(browser, home, width)
            for name in names:
                tell(f"{name or 'index'} at {width}", visit.look(name))
            tell(f"search at {width}", visit.search(word))
        browser.close()
    return found


def parser_of(about: str | None) -> argparse.ArgumentParser:
    """What a check of the site is told: where it was built, and the browser. about: the check's docstring."""
    parser = argparse.ArgumentParser(description=(about or "").partition("\n")[0])
    parser.add_argument("--site", type=Path, default=ROOT / "site", metavar="FOLDER", help="where the site was built")
    parser.add_argument("--browser", metavar="PATH", help="of Chromium or Chrome; the first on the path unless given")
    return parser


def parsed(parser: argparse.ArgumentParser) -> argparse.Namespace:
    """The arguments, the browser's path among them; ends the command where there is no browser."""
    args = parser.parse_args()
    args.browser = args.browser or next(filter(None, map(shutil.which, BROWSERS)), None)
    if args.browser is None:
        parser.error(
            f"a browser is needed: none of {', '.join(BROWSERS)} is on the path (Debian: apt install chromium)"
        )
    return args


def main() -> int:
    """Check the pages that are named, or all."""
    parser = parser_of(__doc__)
    parser.add_argument("pages", nargs="*", help="addresses below the site, as concepts/schedules/; all unless given")
    args = parsed(parser)
    try:
        names = args.pages or pages(args.site)
    except FileNotFoundError as error:
        parser.error(str(error))
    faults = check(args.site, names, args.browser)
    print(f"{len(names)} pages at {' and '.join(map(str, WIDTHS))} pixels: {len(faults) or 'no'} faults")
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(main())
