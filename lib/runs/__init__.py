"""What is kept of a run: its folder, its files, where they came from, and its encoder for timm."""

from lib.runs.files import write_json
from lib.runs.folder import Run, open_run, outputs
from lib.runs.provenance import provenance

__all__ = ["Run", "open_run", "outputs", "provenance", "write_json"]
