"""How pages look beyond what their style sheet can say: where names and options may be broken, and where not.

A hook of MkDocs, as scripts/npm_files.py is.
"""

import re
from typing import Any

CODE = re.compile(r"(<pre\b.*?</pre>)|<code>([^<]*)</code>", re.S)
HYPHENATED = re.compile(r"\S*-\S*")
LONGEST = 32  # what a telephone shows in one line
OBJECT = re.compile(r'(<span class="doc doc-object-name[^"]*">)([\w.]+)(</span>)')
MERMAID = re.compile(r"<script type=\"module\">(?:(?!</script>).)*mermaid.*?</script>", re.S)


def whole_names(html: str) -> str:
    """Keep each word with a hyphen in one line, within code that stands in the text."""

    def keep(word: re.Match[str]) -> str:
        return f'<span class="whole">{word[0]}</span>' if len(word[0]) <= LONGEST else word[0]

    return CODE.sub(lambda code: code[1] or f"<code>{HYPHENATED.sub(keep, code[2])}</code>", html)


def broken_paths(html: str) -> str:
    """Let the path of an object, the heading of its reference, go on in the next line after a dot."""
    return OBJECT.sub(lambda name: name[1] + name[2].replace(".", ".<wbr>") + name[3], html)


def on_page_content(html: str, **_: Any) -> str:
    """Change what a page shows; a notebook's page also loses a script for diagrams, which it has none of, from elsewhere."""
    return broken_paths(whole_names(MERMAID.sub("", html)))
