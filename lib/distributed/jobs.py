"""Independent jobs (runs, probes, finetunings) in parallel processes of joblib."""

from lib.errors import InputError


def check_jobs(jobs: str | int) -> int | None:
    """The number of parallel jobs that `jobs` names (1, 2, ... or its text), None for "auto"."""
    if jobs == "auto":
        return None
    text = str(jobs)
    if isinstance(jobs, bool) or not text.isdecimal() or int(text) < 1:
        raise InputError(f"jobs must be auto or a number of processes from 1 on, got {jobs!r}")
    return int(text)
