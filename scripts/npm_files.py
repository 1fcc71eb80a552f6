"""What the site carries of npm's packages: the files that mkdocs.yml names below extra.npm_files, as npm/PACKAGE/FILE.

A hook of MkDocs. `npm ci` brings the packages, at the versions in package.json; readers then fetch nothing from elsewhere.
"""

from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.exceptions import PluginError
from mkdocs.structure.files import File, Files

PACKAGES = Path(__file__).resolve().parents[1] / "node_modules"


def matching(patterns: list[str], folder: Path = PACKAGES) -> list[Path]:
    """The files below the folder that the patterns name.

    Raises:
        FileNotFoundError: a pattern that names no file.
    """
    found: list[Path] = []
    for pattern in patterns:
        files = sorted(path for path in folder.glob(pattern) if path.is_file())
        if not files:
            raise FileNotFoundError(
                f"extra.npm_files must name files of packages; {pattern!r} names none. Run `npm ci`."
            )
        found += files
    return found


def on_files(files: Files, *, config: MkDocsConfig) -> Files:
    """Add them to what is copied to the site."""
    try:
        for path in matching(config.extra["npm_files"]):
            name = path.relative_to(PACKAGES).as_posix()
            files.append(File.generated(config, f"npm/{name}", abs_src_path=str(path)))
    except FileNotFoundError as error:
        raise PluginError(str(error)) from error
    return files
