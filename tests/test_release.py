"""What the check before a release finds: files that are missing or too many, and versions that disagree."""

import importlib.util
import io
import pathlib
import re
import tarfile
import zipfile

import pytest

import flowppl

ROOT = pathlib.Path(__file__).parents[1]


@pytest.fixture(scope="module")
def release():
    spec = importlib.util.spec_from_file_location("release", ROOT / "scripts" / "release.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


REPOSITORY = {"flowppl/__init__.py", "flowppl/py.typed", "tests/test_it.py", "LICENSE"}
SDIST = REPOSITORY | {"PKG-INFO"}
WHEEL = {
    "flowppl/__init__.py",
    "flowppl/py.typed",
    "flowppl-1.dist-info/METADATA",
    "flowppl-1.dist-info/licenses/LICENSE",
}


def test_whole_archives_have_no_faults(release):
    assert release.faults_of_contents(SDIST, WHEEL, REPOSITORY | {".ci/run"}) == []


@pytest.mark.parametrize(
    ("sdist", "wheel", "fault"),
    [
        (SDIST - {"tests/test_it.py"}, WHEEL, "not in the sdist: tests/test_it.py"),
        (SDIST | {"draft.txt"}, WHEEL, "in the sdist, not in git: draft.txt"),
        (SDIST, WHEEL - {"flowppl/py.typed"}, "not in the wheel: flowppl/py.typed"),
        (SDIST, WHEEL | {"tests/test_it.py"}, "in the wheel, not of the package: tests/test_it.py"),
        (SDIST, WHEEL - {"flowppl-1.dist-info/licenses/LICENSE"}, "not in the wheel: the licence"),
    ],
)
def test_a_file_too_few_or_too_many_is_found(release, sdist, wheel, fault):
    assert release.faults_of_contents(sdist, wheel, REPOSITORY) == [fault]


def test_archives_are_read(release, tmp_path):
    with zipfile.ZipFile(tmp_path / "a.whl", "w") as wheel:
        wheel.writestr("flowppl/__init__.py", "")
    with tarfile.open(tmp_path / "a.tar.gz", "w:gz") as sdist:
        sdist.addfile(tarfile.TarInfo("flowppl-1/tests/test_it.py"), io.BytesIO())
    assert release.files_of(tmp_path / "a.whl") == {"flowppl/__init__.py"}
    assert release.files_of(tmp_path / "a.tar.gz") == {"tests/test_it.py"}


def test_versions_that_disagree_are_found(release):
    changelog, citation = "## 1.2.0 (2026-11-28)\n\n## 1.1.0 (2026-10-01)\n", "title: flowppl\nversion: 1.2.0\n"
    assert release.faults_of_version("1.2.0", changelog, citation) == []
    assert release.faults_of_version("1.2.0", changelog.replace("2026-11-28", "unreleased"), citation) == []
    assert len(release.faults_of_version("1.1.0", changelog, citation)) == 2
    assert len(release.faults_of_version("1.2.0", "## 1.3.0 (unreleased)\n\n" + changelog, citation)) == 1
    assert len(release.faults_of_version("1.2.0", "## 1.2.0\n", citation)) == 1


def test_the_version_is_written_the_same_everywhere(release):
    changelog, citation = ((ROOT / name).read_text() for name in ("CHANGELOG.md", "CITATION.cff"))
    assert release.faults_of_version(flowppl.__version__, changelog, citation) == []


def test_what_is_made_or_taken_for_a_release_is_there():
    include = re.search(
        r"\[tool.hatch.build.targets.sdist\]\ninclude = \[(.*)\]", (ROOT / "pyproject.toml").read_text()
    )
    for name in re.findall(r'"([^"]+)"', include[1]):
        assert (ROOT / name).exists(), name
