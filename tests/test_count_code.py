"""scripts/count_code.py: what counts as a line of code, and which functions are named."""

from count_code import count, large_functions


def test_blank_lines_comments_and_docstrings_are_no_code():
    assert count('"""Doc\n\nstring."""\n\nimport a  # why\n# comment\nx = """two\nlines"""\n') == 1 + 2
    assert count('class C:\n    n: int = 1\n    """A field."""\n') == 2
    assert count("f(\n    1,\n\n    # one more\n    2,\n)\n") == 4
    assert count("") == 0


def test_large_functions_are_named():
    eight, nine = (", ".join("abcdefghi"[:n]) for n in (8, 9))
    long = "def long():\n" + "    pass\n" * 60
    source = f"def fits({eight}): ...\ndef many(*, {nine}): ...\n"
    source += f"class C:\n    def __init__(self, {nine}): ...\n    def m(self, {eight}): ...\n"
    assert large_functions(source + long) == ["many: 9 parameters", "long: 61 lines"]
