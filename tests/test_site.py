"""The documentation site's tools: what is copied into it, how names are broken, and that a page with a fault is found."""

import importlib
import json
import re
import shutil
from pathlib import Path

import page_style
import pytest

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]
TYPESET = "<script>MathJax = {startup: {promise: Promise.resolve()}}</script>"
RIGHT = "<p>A page.</p><table><tr><th>name</th></tr><tr><td>value</td></tr></table>"


def test_options_are_not_broken_at_their_hyphens():
    html = page_style.whole_names(
        "<p><code>ddpm train --train.keep-every 5</code> a-b <pre><code>a --b</code></pre></p>"
    )
    assert '<code>ddpm train <span class="whole">--train.keep-every</span> 5</code>' in html
    assert "a-b <pre><code>a --b</code></pre>" in html


def test_long_names_are_broken_at_their_joints_alone():
    html = page_style.whole_names("<code>weights.from_denoising_diffusion(tensors)</code>")
    assert html == "<code>weights.<wbr>from_denoising_diffusion(<wbr>tensors)</code>"


def test_a_notebook_loses_the_script_from_elsewhere_and_keeps_others():
    page = '<script type="module">await import("https://x.org/mermaid.mjs")</script><script>1</script>'
    assert page_style.on_page_content(page) == "<script>1</script>"


def test_packages_are_pinned_and_their_addresses_left_out():
    wanted = json.loads((ROOT / "package.json").read_text())["dependencies"]
    locked = json.loads((ROOT / "package-lock.json").read_text())["packages"]
    assert all(re.fullmatch(r"[\d.]+", version) for version in wanted.values())
    assert {name: locked[f"node_modules/{name}"]["version"] for name in wanted} == wanted
    assert not any("resolved" in package for package in locked.values())
    site = (ROOT / "mkdocs.yml").read_text()
    assert all(re.search(rf"^ +- {re.escape(name)}/", site, re.M) for name in wanted)


def test_no_page_names_a_script_or_style_from_elsewhere():
    site = (ROOT / "mkdocs.yml").read_text()
    assert not re.findall(r"^extra_(?:javascript|css):.*http", site, re.M)
    for script in (ROOT / "docs").rglob("*.js"):
        assert not re.search(r"https?://", script.read_text()), script


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_tables_have_headings_and_pictures_and_links_have_words(page):
    text = re.sub(r"^```.*?^```", "", page.read_text(), flags=re.M | re.S)
    for header in re.findall(r"^(\|.*\|) *\n\|(?: *:?-+:? *\|)+ *$", text, re.M):
        assert all(cell.strip() for cell in re.split(r"(?<!\\)\|", header)[1:-1]), header
    for mark, words, target in re.findall(r"(!?)\[([^\]\[]*)\]\(([^)\s]+)\)", text):
        assert words.strip(), target
        assert mark or not re.fullmatch(r"here|this|link|[\w-]+(/[\w-]+)*\.md", words) or page.name == "README.md", (
            words
        )


def test_files_of_packages_are_found_or_refused(tmp_path):
    pytest.importorskip("mkdocs")
    npm_files = importlib.import_module("npm_files")
    (tmp_path / "one" / "dist").mkdir(parents=True)
    for name in ("a.wasm", "b.wasm", "c.js"):
        (tmp_path / "one" / "dist" / name).write_text("")
    found = npm_files.matching(["one/dist/*.wasm"], tmp_path)
    assert [path.name for path in found] == ["a.wasm", "b.wasm"]
    with pytest.raises(FileNotFoundError, match=r"'one/absent.js' names none.*npm ci"):
        npm_files.matching(["one/dist/c.js", "one/absent.js"], tmp_path)


def test_what_a_page_draws_with_is_made_anew_when_its_sources_change(tmp_path, monkeypatch):
    pytest.importorskip("mkdocs")
    play_files = importlib.import_module("play_files")
    for pattern in play_files.MADE_OF:
        assert list(ROOT.glob(pattern)), pattern
    (tmp_path / "source.py").write_text("1")
    monkeypatch.setattr(play_files, "ROOT", tmp_path)
    monkeypatch.setattr(play_files, "MADE_OF", ["*.py"])
    before = play_files.digest()
    assert not play_files.is_made(tmp_path, before)
    (tmp_path / "digits.json").write_text(json.dumps({"made_of": before}))
    assert not play_files.is_made(tmp_path, before)
    (tmp_path / "digits.onnx").write_bytes(b"")
    assert play_files.is_made(tmp_path, before)
    (tmp_path / "source.py").write_text("2")
    assert not play_files.is_made(tmp_path, play_files.digest())


@pytest.fixture(scope="module")
def look(tmp_path_factory):
    """The faults of a page with this body, as a browser shows it on a telephone."""
    sync_api = pytest.importorskip("playwright.sync_api")
    check_site = importlib.import_module("check_site")
    executable = next(filter(None, map(shutil.which, check_site.BROWSERS)), None)
    if executable is None:
        pytest.skip("no browser on the path")
    site = tmp_path_factory.mktemp("site")
    with check_site.served(site) as home, sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=executable, args=check_site.FLAGS)
        visit = check_site.Visit(browser, home, 390)

        def of(body: str) -> list[str]:
            head = '<!doctype html><link rel="icon" href="data:,">'
            (site / "index.html").write_text(f"{head}<body><article>{body}</article></body>")
            return visit.look("")

        yield of
        browser.close()


@pytest.mark.slow
def test_a_page_that_is_right_has_no_fault(look):
    assert look(RIGHT) == []


@pytest.mark.slow
@pytest.mark.parametrize(
    ("broken", "said"),
    [
        ('<script src="https://elsewhere.example/x.js"></script>', "asks elsewhere: https://elsewhere.example/x.js"),
        ('<link rel="stylesheet" href="http://fonts.example/f.css">', "asks elsewhere: http://fonts.example/f.css"),
        ('<script src="absent.js"></script>', "status 404"),
        ("<script>console.error('broken')</script>", "console: broken"),
        ("<script>absent()</script>", "error in a script: absent is not defined"),
        (f'<span class="arithmatex">\\(x_t\\)</span>{TYPESET}', "formula not drawn"),
        ('<div style="width: 900px">wide</div>', "the page is"),
        ('<div style="width: 99px; overflow: hidden"><pre>a line of code that is longer than its box</pre></div>', "cut off"),
        ("<table><tr><td>1</td></tr></table>", "table without a header"),
        ("<table><thead><tr><th>a</th><th></th></tr></thead><tr><td>1</td><td>2</td></tr></table>", "empty heading: a | (empty)"),
        (f'<div style="overflow: auto"><table><tr><th>{"wide" * 99}</th></tr></table></div>', "does not say that it scrolls"),
        ('<p style="width: 60px; word-break: break-all">optimization_step</p>', "word broken in two: optimization_step"),
        ('<img alt="a picture" src="absent.png">', "picture that is not there"),
        ('<img src="data:image/gif;base64,R0lGODlhAQABAAAAACH5BAEKAAEALAAAAAABAAEAAAICTAEAOw==">', "picture without words"),
        ('<a href="index.html">here</a>', "link that says nothing: here"),
        ('<a href="index.html">results/digits.md</a>', "link that says nothing: results/digits.md"),
    ],
)  # fmt: skip
def test_a_fault_is_found(look, broken, said):
    assert any(said in fault for fault in look(RIGHT + broken))
