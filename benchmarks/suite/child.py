"""In a process of its own: ``python -m suite.child pyro first_step default`` prints seconds and megabytes as JSON.

The megabytes are how much the largest memory of the process has grown. Imports are not in the seconds.
"""

import json
import resource
import subprocess
import sys

from suite.turns import Plan
from suite.workloads import library

MEGABYTE = 1024 if sys.platform.startswith("linux") else 1024**2  # in the unit of ru_maxrss


def run(name, function, argument, clock):
    """What such a process prints."""
    command = [sys.executable, "-m", "suite.child", name, function, str(argument), clock]
    done = subprocess.run(command, capture_output=True, text=True, cwd=__file__.rsplit("/", 2)[0])
    if done.returncode:
        raise RuntimeError((done.stderr.strip() or "it ended without a word").splitlines()[-1])
    return json.loads(done.stdout.splitlines()[-1])


def main(name, function, argument, clock):
    work = getattr(library(name), function)(argument)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    seconds = Plan(clock=clock).seconds(work)
    after = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    print(json.dumps({"seconds": seconds, "megabytes": (after - before) / MEGABYTE}))


if __name__ == "__main__":
    main(*sys.argv[1:])
