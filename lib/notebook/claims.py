"""The paper's claims that a notebook computes, each with a verdict."""

from collections import Counter
from dataclasses import asdict, dataclass, field
from typing import Any

VERDICTS = ("holds", "fails as printed, holds as corrected", "does not hold")


@dataclass(frozen=True)
class Claim:
    """where: the place in the paper. claim: what it says. computed: the numbers that decide."""

    where: str
    claim: str
    computed: str
    verdict: str


@dataclass
class Claims:
    """The claims of one notebook, in order. A verdict comes from two truth values, nothing else."""

    found: list[Claim] = field(default_factory=list)

    def add(
        self, where: str, claim: str, computed: str, as_printed: bool, corrected: bool = False
    ) -> None:
        """Adds a claim and prints it with its verdict.

        as_printed: whether it holds as the paper prints it; corrected: whether it holds after the
        correction that docs/theory.md gives.
        """
        says = VERDICTS[0] if as_printed else VERDICTS[1] if corrected else VERDICTS[2]
        self.found.append(Claim(where, claim, computed, says))
        print(f"[{says}] {where}: {claim} ({computed})")

    def table(self) -> str:
        """All claims as a Markdown table."""
        lines = ["| where | claim | computed | verdict |", "|---|---|---|---|"]
        for claim in self.found:
            cells = (text.replace("|", "\\|") for text in asdict(claim).values())
            lines.append("| " + " | ".join(cells) + " |")
        return "\n".join(lines)

    def record(self) -> dict[str, Any]:
        """For the notebook's JSON: every claim, and how many there are of each verdict."""
        counts = Counter(claim.verdict for claim in self.found)
        claims = [asdict(claim) for claim in self.found]
        return {"claims": claims, "counts": {verdict: counts[verdict] for verdict in VERDICTS}}
