"""Hold the page docs/play.md to the package, in a headless browser; exit status 1 where something is wrong.

What the page draws has to be digits that a classifier of real ones recognises, and for the same seed the noise, the walks and the
pixels of this package. `make docs` builds the site; what is needed besides is what scripts/check_site.py needs.
"""

import shlex
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from check_site import FLAGS, ROOT, WIDTHS, Visit, parsed, parser_of, served
from playwright.sync_api import Browser, sync_playwright

from ddpm_jax import samplers
from ddpm_jax.evaluation.cache import cached_classifier
from ddpm_jax.evaluation.report import REAL_IMAGES, load_images
from ddpm_jax.training import Drawing, open_run
from ddpm_jax.verify.tolerances import relative_error, tolerance

RUN = open_run("pretrained:digits")
NUM = 10  # digits that the page draws at a time
SEEDS = range(5)
RECOGNISED = 0.9
"""The least share of the digits that a classifier of real ones takes for the class asked for."""
MOST_BYTES = 15_000_000
"""That Draw may load."""
STATES = """async (asked) => {
  const play = await import(document.querySelector("script[src$='play.js']").src);
  window.held ??= await play.loadNetwork(await play.fetchAbout());
  const states = [];
  for await (const { x_t } of play.walk(window.held, asked)) states.push([...x_t]);
  return states;
}"""
PIXELS = """(canvas) => {
  const { width, height } = canvas;
  const copy = new OffscreenCanvas(width, height).getContext("2d", { willReadFrequently: true });
  copy.drawImage(canvas, 0, 0);
  return { width, bytes: [...copy.getImageData(0, 0, width, height).data] };
}"""
FAILED = "This does not work here"


@dataclass(frozen=True)
class Asked:
    """What a reader chooses."""

    sampler: samplers.DDIM | samplers.DPMSolver
    steps: int
    seed: int
    only: int | None = None
    """Class of all digits; None: one of each."""

    def __str__(self) -> str:
        of = "one of each class" if self.only is None else f"class {self.only}"
        return f"{self.sampler}, {self.steps} steps, seed {self.seed}, {of}"

    @property
    def labels(self) -> list[int]:
        """The class of each digit."""
        return list(range(NUM)) if self.only is None else [self.only] * NUM

    @property
    def eta(self) -> float | None:
        """DDIM's; None: it is another sampler."""
        return self.sampler.eta if isinstance(self.sampler, samplers.DDIM) else None


DDIM, ANCESTRAL, DPMPP = samplers.DDIM(), samplers.DDIM(eta=1.0), samplers.DPMSolver()
WALKS = (
    Asked(DDIM, 20, 1),
    Asked(DDIM, 100, 2**31 - 1, only=8),
    Asked(ANCESTRAL, 50, 2),
    Asked(ANCESTRAL, 5, 3, only=0),
    Asked(DPMPP, 20, 4),
    Asked(DPMPP, 7, 5, only=4),
)
COMMANDS = (Asked(DDIM, 20, 6), Asked(ANCESTRAL, 33, 7, only=3), Asked(DPMPP, 11, 8, only=9))


class Player(Visit):
    """The page in a browser, and what a reader does there."""

    def begin(self) -> list[str]:
        """Load it; the faults that show."""
        return self.look("play/")

    def says(self) -> str:
        """The page's word on how drawing goes."""
        return self.page.locator("#play .status").inner_text()

    def draw(self, asked: Asked) -> np.ndarray:
        """Choose, press Draw, and read the pictures when all is done: uint8 (10, 8, 8, 1)."""
        form = self.page.locator("#play .choice")
        form.locator("[name=label]").select_option("" if asked.only is None else str(asked.only))
        form.locator("[name=sampler]").select_option("dpmpp" if asked.eta is None else f"ddim {asked.eta:g}")
        form.locator("[name=steps]").fill(str(asked.steps))
        form.locator("[name=seed]").fill(str(asked.seed))
        form.locator(".draw").click()
        self.wait_until_done()
        return self.pictures("x_t")

    def wait_until_done(self) -> None:
        """Until the page says how long it took, or that it failed."""
        self.page.wait_for_function(
            f"/ s\\.|{FAILED}/.test(document.querySelector('#play .status').innerText)", timeout=120_000
        )

    def pictures(self, name: str) -> np.ndarray:
        """What a canvas shows, two rows of five a pixel apart: uint8 (10, 8, 8, 1)."""
        read = self.page.locator(f"#play canvas.{name}").evaluate(PIXELS)
        whole = np.array(read["bytes"], np.uint8).reshape(-1, read["width"], 4)[..., :1]
        height, width, _ = RUN.shape
        corners = [(y, x) for y in range(0, whole.shape[0], height + 1) for x in range(0, whole.shape[1], width + 1)]
        return np.stack([whole[y : y + height, x : x + width] for y, x in corners])


def is_alive(player: Player) -> Iterator[tuple[str, bool]]:
    """It shows noise, then digits; the slider goes back; the next seed is another one; a new choice stops what is being drawn."""
    noise = player.pictures("x_t")
    yield "noise of the first seed is there before anything is loaded", len(np.unique(noise)) > 100
    asked = Asked(DDIM, 20, 0)
    digits = player.draw(asked)
    yield "what is shown at the end is x_0", (digits == player.pictures("x_0")).all() and (digits != noise).any()
    slider = player.page.locator("#play [name=moment]")
    slider.fill("0")
    yield (
        "the slider goes back to the noise",
        (player.pictures("x_t") == noise).all()
        and "step 0 of 20, t = 999" in player.page.locator("#play .level").inner_text(),
    )
    player.page.locator("#play .next").click()
    player.wait_until_done()
    yield (
        "the next seed is 1, and another picture",
        player.page.locator("#play [name=seed]").input_value() == "1" and (player.pictures("x_t") != digits).any(),
    )
    player.page.locator("#play .draw").click()
    player.page.locator("#play [name=steps]").fill("9")
    yield "pressed again amid a walk it draws what is asked for last", (player.draw(asked) == digits).all()


def are_recognised(player: Player) -> Iterator[tuple[str, bool]]:
    """Ten classes from each of SEEDS, shown to the classifier of `ddpm evaluate`."""
    images, labels = load_images(RUN, RUN.open_source(), 0, REAL_IMAGES)
    train = 7 * len(images) // 10
    classifier = cached_classifier(images[:train], labels[:train], len(RUN.class_names))
    real = classifier.accuracy(images[train:], labels[train:])
    for sampler, steps in ((DDIM, 50), (ANCESTRAL, 50), (DPMPP, 20)):
        drawn = [player.draw(Asked(sampler, steps, seed)) for seed in SEEDS]
        share = classifier.accuracy(np.concatenate(drawn), np.tile(np.arange(NUM), len(drawn)))
        told = f"{sampler}, {steps} steps: {share:.1%} of {NUM * len(drawn)} digits are recognised; of real ones {real:.1%}"
        yield told, share >= RECOGNISED


def walks_are_ours(player: Player) -> Iterator[tuple[str, bool]]:
    """Every state of a walk from the same seed."""
    for asked in WALKS:
        given = vars(asked) | {"sampler": asked.sampler.name, "eta": asked.eta, "labels": asked.labels}
        states = np.array(player.page.evaluate(STATES, given), np.float32)
        theirs = states.reshape(asked.steps + 1, NUM, *RUN.shape)
        denoise = Drawing(RUN, RUN.config.sample).denoiser(np.array(asked.labels, np.int32))
        _, frames = samplers.sample_with_frames(
            denoise, asked.sampler, asked.seed, theirs.shape[1:], asked.steps, num_frames=asked.steps + 1
        )
        ours = np.asarray(frames)
        noise, walk = relative_error(theirs[0], ours[0]), relative_error(theirs, ours)
        told = f"{asked}: max |page - ddpm_jax| / max |ddpm_jax| of x_T {noise:.1e}, of the walk {walk:.1e}"
        told += f"; max |page - ddpm_jax| of the samples {np.abs(theirs[-1] - ours[-1]).max():.1e}"
        yield told, walk <= tolerance("trajectory", "float32")


def commands_draw_the_same(player: Player) -> Iterator[tuple[str, bool]]:
    """The command that the page shows makes the page's pixels, but for the rounding to whole numbers."""
    for asked in COMMANDS:
        shown = player.draw(asked)
        _, *words = shlex.split(player.page.locator("#play .command").inner_text())
        with tempfile.TemporaryDirectory() as folder:
            command = [sys.executable, "-m", "ddpm_jax", *words, "--out", folder]
            subprocess.run(command, check=True, stdout=subprocess.DEVNULL, cwd=ROOT)
            made = np.load(Path(folder) / "samples.npz")
            apart, labels = np.abs(shown.astype(int) - made["images"]).max(), made["labels"].tolist()
        yield f"ddpm {shlex.join(words)}: pixels of 0..255 lie {apart} apart", apart <= 1 and labels == asked.labels


def loads_little(player: Player) -> Iterator[tuple[str, bool]]:
    """The bytes of what Draw loads."""
    loaded = player.page.evaluate(
        "performance.getEntriesByType('resource').filter((e) => /onnx|play/.test(e.name)).map((e) => [e.name, e.decodedBodySize])"
    )
    size = sum(size for _, size in loaded)
    yield f"{len(loaded)} files of {size / 1e6:.1f} MB are loaded", 10_000_000 < size <= MOST_BYTES


def says_what_is_wrong(browser: Browser, home: str) -> Iterator[tuple[str, bool]]:
    """A reader without JavaScript, or whose browser cannot have the runtime, is told so."""
    page = browser.new_page(java_script_enabled=False)
    page.goto(f"{home}/play/")
    told = page.locator("noscript").inner_text()
    yield f"without JavaScript: {told}", "needs JavaScript" in told and not page.locator("#play").is_visible()
    player = Player(browser, home, WIDTHS[0])
    player.begin()
    player.page.route("**/*.wasm", lambda route: route.abort())
    player.draw(Asked(DDIM, 5, 0))
    yield f"without the runtime: {player.says()}", player.says().startswith(FAILED)


CHECKS: tuple[Callable[[Player], Iterator[tuple[str, bool]]], ...] = (
    is_alive,
    loads_little,
    are_recognised,
    walks_are_ours,
    commands_draw_the_same,
)


def check(site: Path, executable: str) -> list[str]:
    """What is wrong; each thing that was looked at is printed."""
    wrong: list[str] = []

    def tell(told: str, right: bool) -> None:
        print(f"{'ok  ' if right else 'FAIL'} {told}", flush=True)
        wrong.extend([] if right else [told])

    with served(site) as home, sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=executable, args=FLAGS)
        player = Player(browser, home, WIDTHS[0])
        faults = player.begin()
        for look in CHECKS:
            for told, right in look(player):
                tell(told, right)
        faults += player.faults
        tell(f"faults, and requests that leave this machine: {'; '.join(faults) or 'none'}", not faults)
        for told, right in says_what_is_wrong(browser, home):
            tell(told, right)
        browser.close()
    return wrong


def main() -> int:
    """Check the page of a built site."""
    parser = parser_of(__doc__)
    args = parsed(parser)
    if not (args.site / "play" / "index.html").is_file():
        parser.error(f"the site must be built first, with `make docs`: {args.site} holds no page play/")
    return 1 if check(args.site, args.browser) else 0


if __name__ == "__main__":
    sys.exit(main())
