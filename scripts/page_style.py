"""How pages look beyond what their style sheet can say: where names and options may be broken, and where not.

A hook of MkDocs, as scripts/npm_files.py is.
"""

import re
from typing import Any

CODE = re.compile(r"(<pre\b.*?</pre>)|<code>([^<]*)</code>", re.S)
OBJECT = re.compile(r'(<span class="doc doc-object-name[^"]*">)([\w.]+)(</span>)')
JOINT = re.compile(r"(?<=[/.,(=])(?=\w)")
LONGEST = 32  # characters that a telephone shows in one line
MERMAID = re.compile(r"<script type=\"module\">(?:(?!</script>).)*mermaid.*?</script>", re.S)


def whole_names(html: str) -> str:
    """In code that stands in the text, keep a word with a hyphen in one line, and let a long one go on at its joints."""

    def keep(word: re.Match[str]) -> str:
        if len(word[0]) > LONGEST:
            return JOINT.sub("<wbr>", word[0])
        return f'<span class="whole">{word[0]}</span>' if "-" in word[0] else word[0]

    return CODE.sub(lambda code: code[1] or "<code>" + re.sub(r"\S+", keep, code[2]) + "</code>", html)


def broken_paths(html: str) -> str:
    """Let the path of an object, the heading of its reference, go on in the next line at a dot."""
    return OBJECT.sub(lambda name: name[1] + JOINT.sub("<wbr>", name[2]) + name[3], html)


def on_page_content(html: str, **_: Any) -> str:
    """Change what a page shows; a notebook's page also loses a script for diagrams, which it has none of, from elsewhere."""
    return broken_paths(whole_names(MERMAID.sub("", html)))


def on_post_page(output: str, **_: Any) -> str:
    """Leave the repository's address in the header, without the script that asks its host for stars and forks."""
    return output.replace(' data-md-component="source"', "")
