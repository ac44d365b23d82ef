"""Build the sdist and the wheel, check what is in them, and try both where one language alone is installed.

    python scripts/release.py

What is built stays in dist/, for `twine upload`; the environments go into a temporary folder, and away.
"""

import pathlib
import re
import shutil
import subprocess
import sys
import tarfile
import tempfile
import time
import zipfile

ROOT = pathlib.Path(__file__).resolve().parents[1]
DIST = ROOT / "dist"
LANGUAGES = ("pyro", "numpyro")
MADE = {"PKG-INFO"}  # by the build, and not of the repository
AT_HOME = (".ci/",)  # of the repository alone


def run(*command):
    print("$", *(str(each).replace(str(ROOT) + "/", "") for each in command), flush=True)
    subprocess.run(command, cwd=ROOT, check=True)


def tracked():
    """The files of the repository."""
    return set(
        subprocess.run(["git", "ls-files"], cwd=ROOT, check=True, stdout=subprocess.PIPE, text=True).stdout.split("\n")[
            :-1
        ]
    )


def files_of(archive):
    """The files in an sdist or a wheel: those of an sdist without the folder that it is in."""
    if archive.suffix == ".whl":
        with zipfile.ZipFile(archive) as wheel:
            return {name for name in wheel.namelist() if not name.endswith("/")}
    with tarfile.open(archive) as sdist:
        return {member.name.partition("/")[2] for member in sdist.getmembers() if member.isfile()}


def faults_of_contents(sdist, wheel, repository):
    """What is missing or should not be there, one line each."""
    repository = {name for name in repository if not name.startswith(AT_HOME)}
    package = {name for name in repository if name.startswith("flowppl/")}
    notes = {name for name in wheel if ".dist-info/" in name}
    faults = [f"not in the sdist: {name}" for name in sorted(repository - sdist)]
    faults += [f"in the sdist, not in git: {name}" for name in sorted(sdist - repository - MADE)]
    faults += [f"not in the wheel: {name}" for name in sorted(package - wheel)]
    faults += [f"in the wheel, not of the package: {name}" for name in sorted(wheel - notes - package)]
    if not any(name.endswith("/licenses/LICENSE") for name in notes):
        faults.append("not in the wheel: the licence")
    return faults


def faults_of_version(version, changelog, citation):
    """Where the version of the package is not the one that is written, one line each."""
    faults = []
    if re.findall(r"^## (\S+) \((?:unreleased|\d{4}-\d\d-\d\d)\)$", changelog, re.MULTILINE)[:1] != [version]:
        faults.append(f"CHANGELOG.md: its newest part must have the heading '## {version} (year-month-day)'")
    if f"\nversion: {version}\n" not in citation:
        faults.append(f"CITATION.cff must have the line 'version: {version}'")
    return faults


def check(faults):
    if faults:
        sys.exit("\n".join(faults))


def try_out(language, archives):
    """Install each archive with one extra where nothing else is, and use it."""
    with tempfile.TemporaryDirectory() as folder:
        python = pathlib.Path(folder) / "bin" / "python"
        run(sys.executable, "-m", "venv", folder)
        install = [python, "-m", "pip", "install", "--quiet", "--constraint", ROOT / "constraints.txt"]
        if language == "pyro":
            run(*install, "torch")  # pinned, or pip takes the newest and several GB of CUDA
        for archive in archives:
            run(*install, f"{archive}[{language}]")
            run(python, "-m", "pip", "check")
            start = time.monotonic()
            run(python, "-I", "-W", "error", ROOT / "scripts" / "smoke.py", language)
            print(f"{archive.name} works with {language} alone ({time.monotonic() - start:.0f} s)", flush=True)
            run(python, "-m", "pip", "uninstall", "--quiet", "--yes", "flowppl")


def main():
    start = time.monotonic()
    shutil.rmtree(DIST, ignore_errors=True)
    run(sys.executable, "-m", "uv", "build", "--quiet", "--out-dir", DIST)
    (sdist,), (wheel,) = DIST.glob("*.tar.gz"), DIST.glob("*.whl")
    run(sys.executable, "-m", "twine", "check", "--strict", sdist, wheel)
    check(faults_of_contents(files_of(sdist), files_of(wheel), tracked()))
    version = wheel.name.split("-")[1]
    changelog = (ROOT / "CHANGELOG.md").read_text()
    check(faults_of_version(version, changelog, (ROOT / "CITATION.cff").read_text()))
    for language in LANGUAGES:
        try_out(language, (wheel, sdist))
    todo = ", once CHANGELOG.md has its date" if "(unreleased)" in changelog else ""
    print(f"flowppl {version} can be released{todo} ({time.monotonic() - start:.0f} s)")


if __name__ == "__main__":
    main()
