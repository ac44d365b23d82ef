"""A user's program in each language passes ``mypy --strict``, and its results have the right types."""

import pathlib
import subprocess
import sys

TYPING = pathlib.Path(__file__).parent / "typing"


def test_programs_of_users_are_typed():
    programs = [str(TYPING / f"{language}_program.py") for language in ("pyro", "numpyro")]
    command = [sys.executable, "-m", "mypy", "--config-file", str(TYPING / "mypy.ini"), *programs]
    result = subprocess.run(command, cwd=TYPING.parents[1], capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stdout + result.stderr
