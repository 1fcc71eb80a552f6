// a table that is wider than the page says that it scrolls
const tables = [...document.querySelectorAll("article table")].map((table) => {
  const note = document.createElement("p");
  note.className = "scrolls";
  note.textContent = "This table is wider than the page: it scrolls to the right →";
  return {table, note};
});

// the table, or what holds it, that has more within than it shows
function scroller(table) {
  for (let box = table; box.tagName !== "ARTICLE"; box = box.parentElement)
    if (box.scrollWidth > box.clientWidth + 1 && /auto|scroll/.test(getComputedStyle(box).overflowX)) return box;
  return null;
}

const observer = new ResizeObserver(() => {
  for (const {table, note} of tables) {
    const box = scroller(table);
    if (!box) {
      note.remove();
    } else if (box.previousSibling !== note) {
      box.tabIndex = 0; // for the arrow keys
      box.before(note);
    }
  }
});
observer.observe(document.body);
for (const {table} of tables) observer.observe(table);
