"""Lock files of the oldest and the newest versions that pyproject.toml admits, and the suite on each.

    python scripts/versions.py lock [NAME ...]                    write locks/NAME.txt anew
    python scripts/versions.py test [NAME ...] [-- ARGUMENT ...]  run pytest with these arguments in a venv of each

NAME is "oldest" or "newest" and a Python, such as oldest-3.11; without one, all lock files. In the oldest all that a
user needs has its lower bound. uv makes the environments, in .versions/; it heeds its own variables:
UV_TORCH_BACKEND=cpu for the small torch, UV_PRERELEASE=allow for versions to come, UV_PYTHON_DOWNLOADS=never to take
the Python that is there.
"""

import pathlib
import re
import subprocess
import sys
import tempfile
import tomllib

ROOT = pathlib.Path(__file__).resolve().parents[1]
UV = [sys.executable, "-m", "uv"]
SETTINGS = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
# What torch needs for GPUs differs between its builds, and each asks for its own.
LEFT_OUT = re.compile(r"(nvidia|cuda|triton)\b")


def requirements(*extras):
    """Of these extras, and of those that they are made of: the bounds by name."""
    found = {}
    wanted = [*SETTINGS["dependencies"], *(f"flowppl[{extra}]" for extra in extras)]
    while wanted:
        name, inner, bounds = re.fullmatch(r"([\w-]+)(?:\[(.*)\])?(.*)", wanted.pop()).groups()
        if name == "flowppl":
            wanted += [each for extra in inner.split(",") for each in SETTINGS["optional-dependencies"][extra]]
        else:
            found[name] = bounds
    return found


def lock(name):
    """Write a lock file."""
    kind, python = name.split("-")
    with tempfile.NamedTemporaryFile("w", suffix=".txt") as constraints:
        if kind == "oldest":
            for package, bounds in requirements("all").items():
                print(f"{package}=={re.match(r'>=([^,]+)', bounds)[1]}", file=constraints, flush=True)
        command = [*UV, "pip", "compile", "pyproject.toml", "--extra=dev", f"--python-version={python}", "--quiet"]
        command += ["--no-header", "--no-annotate", "--constraint", constraints.name]
        lines = subprocess.run(command, cwd=ROOT, check=True, stdout=subprocess.PIPE, text=True).stdout.splitlines()
    lines = [line for line in lines if not LEFT_OUT.match(line)]
    (ROOT / "locks" / f"{name}.txt").write_text("\n".join(lines) + "\n")


def test(name, arguments):
    """Run the suite on the versions of a lock file; whether it passed."""
    venv, file = ROOT / ".versions" / name, ROOT / "locks" / f"{name}.txt"
    python, stamp = venv / "bin" / "python", venv / "lock.txt"
    if not stamp.exists() or stamp.read_text() != file.read_text():
        for command in (
            ["venv", "--clear", "--python", name.split("-")[1], venv],
            ["pip", "install", "--quiet", "--python", python, "--requirement", file],
            ["pip", "install", "--quiet", "--python", python, "--no-deps", "--editable", ROOT],
            ["pip", "check", "--python", python],
        ):
            if subprocess.run([*UV, *command], cwd=ROOT, check=False).returncode:
                return False
        stamp.write_text(file.read_text())
    return subprocess.run([python, "-m", "pytest", *arguments], cwd=ROOT, check=False).returncode == 0


def main(task, *arguments):
    names, options = list(arguments), ["-n", "2", "--dist", "worksteal"]
    if "--" in arguments:
        names, options = names[: arguments.index("--")], names[arguments.index("--") + 1 :]
    names = names or sorted(path.stem for path in (ROOT / "locks").glob("*.txt"))
    if task == "lock":
        for name in names:
            lock(name)
        return
    passed = {name: test(name, options) for name in names}
    for name, is_right in passed.items():
        print(f"{name:12}  {'passed' if is_right else 'FAILED'}")
    sys.exit(not all(passed.values()))


if __name__ == "__main__":
    main(*sys.argv[1:])
