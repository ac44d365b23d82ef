"""README as the page of the package shows it: whole addresses in the place of paths within the repository."""

import pathlib
import re

from hatchling.metadata.plugin.interface import MetadataHookInterface

REPOSITORY = "https://github.com/flowppl/flowppl/blob/main/"
PICTURES = "https://raw.githubusercontent.com/flowppl/flowppl/main/"
LINK = re.compile(r"(!?)\[([^\]]*)\]\((?!https?:|#)([^)]+)\)")


class ReadmeHook(MetadataHookInterface):
    def update(self, metadata: dict) -> None:
        text = (pathlib.Path(self.root) / "README.md").read_text(encoding="utf-8")
        text = LINK.sub(lambda m: f"{m[1]}[{m[2]}]({PICTURES if m[1] else REPOSITORY}{m[3]})", text)
        metadata["readme"] = {"content-type": "text/markdown", "text": text}
