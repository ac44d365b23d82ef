"""What benchmarks measure, kept in a file."""

import json
import sys


class Results:
    """A list of records, written to a file, if there is one, after each."""

    def __init__(self, path):
        self.path = path
        self.records = json.loads(path.read_text()) if path and path.exists() else []

    def get(self, labels, measure, *args):
        """The record with these labels, measured by ``measure(*args)`` only if it is not there."""
        for record in self.records:
            if labels.items() <= record.items():
                return record
        record = labels | measure(*args)
        print(record, file=sys.stderr, flush=True)
        self.records.append(record)
        if self.path:
            new = self.path.with_suffix(".new")
            new.write_text(json.dumps(self.records, indent=1))
            new.replace(self.path)
        return record
