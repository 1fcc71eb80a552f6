"""What is published: the oldest dependencies are those that are tested, and a release is what its workflow says."""

import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.version import Version

import ddpm_jax

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
TESTED = ("torch", "ode", "onnx", "hub", "hf", "test")
"""The extras that the tests install; those for accelerators and services are not tried at their lowest."""
WORKFLOWS = {path.name: yaml.safe_load(path.read_text()) for path in (ROOT / ".github" / "workflows").glob("*.yml")}
RELEASE = WORKFLOWS["release.yml"]["jobs"]


def required(lines: list[str]) -> list[Requirement]:
    return [Requirement(line) for line in lines if not line.startswith("ddpm-jax")]


def pinned(text: str) -> dict[str, Version]:
    found = {}
    for line in text.splitlines():
        name, _, version = line.partition("#")[0].strip().partition("==")
        if name:
            found[name] = Version(version)
    return found


def lowest(requirement: Requirement) -> Version:
    """Its lower bound; every requirement has one."""
    (bound,) = (part.version for part in requirement.specifier if part.operator in (">=", "=="))
    return Version(bound)


def test_the_lowest_versions_are_those_that_are_promised():
    wanted: dict[str, Version] = {}
    for lines in [PROJECT["dependencies"], *(PROJECT["optional-dependencies"][name] for name in TESTED)]:
        for requirement in required(lines):
            wanted[requirement.name] = max(lowest(requirement), wanted.get(requirement.name, Version("0")))
    tested = pinned((ROOT / "constraints-lowest.txt").read_text())
    newest = pinned((ROOT / "constraints.txt").read_text())
    assert wanted.pop("torch") <= tested["torch"] == newest["torch"]
    assert tested == wanted | newest


def test_every_other_extra_exists():
    others = set(PROJECT["optional-dependencies"]) - set(TESTED)
    assert others == {"cuda", "tpu", "aot-tpu", "aot-cuda", "wandb", "tfds-prepare", "dev", "docs", "site"}


def test_the_pythons_of_the_metadata_are_those_that_are_tested():
    told = re.findall(r":: (3\.\d+)$", "\n".join(PROJECT["classifiers"]), flags=re.M)
    assert PROJECT["requires-python"] == f">={told[0]}"
    assert WORKFLOWS["test.yml"]["jobs"]["test"]["strategy"]["matrix"]["python"] == told
    assert RELEASE["try"]["strategy"]["matrix"]["python"] == told
    assert all(f"Python {version}" in (ROOT / "docs" / "stability.md").read_text() for version in told)


def test_the_citation_is_of_this_version():
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert citation["version"] == ddpm_jax.__version__ and citation["license"] == PROJECT["license"]
    assert {"cff-version", "message", "title", "authors"} <= citation.keys()
    assert [author["name"] for author in citation["authors"]] == [author["name"] for author in PROJECT["authors"]]


@pytest.mark.parametrize("name", sorted(WORKFLOWS))
def test_workflows_are_whole(name):
    """Each job has steps that exist, ends in time, and may only do what it says."""
    workflow = WORKFLOWS[name]
    assert workflow["permissions"] == {"contents": "read"} and workflow[True]  # "on" is YAML's word for true
    targets = set(re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), flags=re.M))
    for job in workflow["jobs"].values():
        assert job["timeout-minutes"] and set(job.get("needs", "").split()) <= workflow["jobs"].keys()
        for step in job["steps"]:
            assert (
                re.fullmatch(r"[\w-]+/[\w-]+@(v\d+|release/v\d+|[0-9a-f]{40})", step["uses"])
                if "uses" in step
                else step["run"]
            )
            assert {*re.findall(r"^make ([\w-]+)", step.get("run", ""))} <= targets


def test_a_release_is_built_once_and_tried_before_it_is_published():
    assert WORKFLOWS["release.yml"][True] == {"push": {"tags": ["v[0-9]+.[0-9]+.[0-9]+"]}}
    assert [RELEASE[job].get("needs") for job in ("build", "try", "publish", "github")] == [
        None,
        "build",
        "try",
        "publish",
    ]
    assert [name for name, job in RELEASE.items() if "make package" in str(job["steps"])] == ["build"]
    for job in ("publish", "github"):
        assert RELEASE[job]["permissions"]["id-token"] == "write"
        assert not any(
            "checkout" in step.get("uses", "") for step in RELEASE[job]["steps"]
        )  # what was tried, and nothing else
    assert RELEASE["publish"]["permissions"].keys() == {"id-token"}
    assert "secrets." not in (ROOT / ".github" / "workflows" / "release.yml").read_text()


@pytest.fixture
def step(tmp_path):
    """Runs a step of the release's first job, on files of a test's own; returns what was done."""

    def run(name: str, tag: str, **files: str) -> subprocess.CompletedProcess[str]:
        (text,) = (step["run"] for step in RELEASE["build"]["steps"] if step.get("name", "").startswith(name))
        for file, content in files.items():
            (tmp_path / f"{file}.md").write_text(content)
        told = {"GITHUB_REF_NAME": tag, "GITHUB_SERVER_URL": "https://example.org", "GITHUB_REPOSITORY": "us/ours"}
        path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
        environment = os.environ | told | {"PATH": path, "PYTHONPATH": str(ROOT)}
        command = ["bash", "-eo", "pipefail", "-c", text]
        return subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)

    return run


def test_the_tag_is_the_versions(step):
    assert step("the tag", f"v{ddpm_jax.__version__}").returncode == 0
    other = step("the tag", "v99.0.0")
    assert other.returncode == 1 and other.stderr == f"the tag is v99.0.0 and the version {ddpm_jax.__version__}\n"


def test_the_notes_are_the_changelogs_section(step, tmp_path):
    sections = ("1.1.0 (unreleased)\n\n- Soon.\n", "1.0.10 (2031-02-03)\n\n- Ten.\n", "1.0.1 (2031-01-02)\n\n- One.\n")
    text = "# Changelog\n\n## " + "\n## ".join(sections)
    assert step("the changelog", "v1.0.1", CHANGELOG=text).returncode == 0
    assert (tmp_path / "notes.md").read_text() == "\n- One.\n"
    assert step("the changelog", "v1.0.10", CHANGELOG=text).returncode == 0
    assert (tmp_path / "notes.md").read_text() == "\n- Ten.\n\n"
    assert step("the changelog", "v1.0.0", CHANGELOG=text).returncode == 1
    assert step("the changelog", "v1.1.0", CHANGELOG=text).returncode == 1


def test_the_readme_leads_somewhere_from_pypi(step, tmp_path):
    before = (ROOT / "README.md").read_text()
    assert step("the README's links", "v1.2.3", README=before).returncode == 0
    after = (tmp_path / "README.md").read_text()
    link = re.compile(r"(!?)\[[^]]*\]\(([^)]+)\)")
    assert len(link.findall(before)) == len(link.findall(after)) > 30
    for (picture, old), (_, new) in zip(link.findall(before), link.findall(after), strict=True):
        kind = "raw" if picture else "blob"
        assert new == (old if ":" in old else f"https://example.org/us/ours/{kind}/v1.2.3/{old}")
