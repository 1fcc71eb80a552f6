// What is wrong with the page that is shown, one line for each fault. scripts/check_site.py runs it.
() => {
  const faults = new Set();
  const article = document.querySelector("article") ?? document.body;
  const shown = (el) => el.checkVisibility() && el.getClientRects().length > 0;
  const short = (text) => text.trim().replace(/\s+/g, " ").slice(0, 60);
  const scrolls = (el) => /auto|scroll/.test(getComputedStyle(el).overflowX);
  const holder = (el, wanted) => {
    for (let box = el; box && box !== document.body; box = box.parentElement) if (wanted(box)) return box;
    return null;
  };

  // formulas
  for (const formula of article.querySelectorAll(".arithmatex")) {
    if (!shown(formula)) continue;
    const drawn = formula.querySelector("svg")?.getBoundingClientRect();
    if (!drawn || drawn.width < 3 || drawn.height < 1) faults.add(`formula not drawn: ${short(formula.textContent)}`);
    if (formula.querySelector("[data-mml-node=merror]")) faults.add(`formula in error: ${short(formula.textContent)}`);
  }

  // widths
  const page = document.documentElement;
  if (page.scrollWidth > page.clientWidth) faults.add(`the page is ${page.scrollWidth - page.clientWidth} pixels too wide`);
  for (const el of article.querySelectorAll("*")) {
    if (!shown(el) || el.closest("svg, mjx-assistive-mml, .headerlink")) continue;
    const rect = el.getBoundingClientRect();
    if (rect.width > 0 && rect.right > page.clientWidth + 1 && !holder(el, scrolls))
      faults.add(`beyond the page's edge: <${el.localName}> ${short(el.textContent)}`);
    if (el.scrollWidth > el.clientWidth + 1 && /hidden|clip/.test(getComputedStyle(el).overflowX) && el.clientWidth > 1)
      faults.add(`cut off: <${el.localName} class="${el.className}"> ${short(el.textContent)}`);
  }

  // tables
  for (const table of article.querySelectorAll("table:not(.highlighttable)")) {
    if (!shown(table)) continue;
    const heads = [...(table.querySelector("thead") ?? table.querySelector("tr")).querySelectorAll("th")];
    if (!heads.length) faults.add(`table without a header: ${short(table.textContent)}`);
    if (heads.some((head) => !head.textContent.trim() && !head.querySelector("img, svg")))
      faults.add(`table with an empty heading: ${heads.map((head) => short(head.textContent) || "(empty)").join(" | ")}`);
    const box = holder(table, (el) => scrolls(el) && el.scrollWidth > el.clientWidth + 1);
    if (box && !(box.previousElementSibling?.matches(".scrolls") && shown(box.previousElementSibling)))
      faults.add(`table that does not say that it scrolls: ${short(table.textContent)}`);
  }

  // words that go on in the next line
  const texts = document.createTreeWalker(article, NodeFilter.SHOW_TEXT);
  const range = document.createRange();
  for (let text = texts.nextNode(); text; text = texts.nextNode()) {
    const parent = text.parentElement;
    if (!shown(parent) || parent.closest("svg, script, style, mjx-container")) continue;
    range.selectNodeContents(text);
    if (range.getClientRects().length < 2) continue;
    for (const word of text.data.matchAll(/[\p{L}\p{N}_]+/gu)) {
      range.setStart(text, word.index);
      range.setEnd(text, word.index + word[0].length);
      if (new Set([...range.getClientRects()].map((rect) => Math.round(rect.top))).size > 1)
        faults.add(`word broken in two: ${word[0]} (${parent.closest("td, th, li, p, pre")?.localName})`);
    }
  }

  // pictures and links
  for (const image of article.querySelectorAll("img")) {
    if (!image.complete || !image.naturalWidth) faults.add(`picture that is not there: ${image.src.slice(0, 100)}`);
    if (!image.alt.trim()) faults.add(`picture without words: ${image.src.slice(0, 100)}`);
  }
  for (const link of article.querySelectorAll("a[href]:not(.headerlink):not(.md-icon)")) {
    const words = link.textContent.trim();
    if (!words && !link.querySelector("img, svg") && shown(link)) faults.add(`link without words: ${link.href}`);
    if (/^(here|this|link|click here|[\w./-]+\.(md|html))$/i.test(words)) faults.add(`link that says nothing: ${words}`);
  }
  return [...faults];
}
