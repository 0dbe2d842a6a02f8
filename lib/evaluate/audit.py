"""Which probe flatters an encoder: its features' shape, its accuracy by protocol, and the gap.

The protocol gap of a feature is its accuracy under a thorough protocol (batch-normed "mae" or
converged "lbfgs") minus that under a plain linear layer of 10 epochs ("sgd"). A plain probe moves
slowly along directions in which the features vary little, so the gap grows with the condition
number of the features. It says how much of an encoder's accuracy a short plain probe leaves unread.
How much of it is only the size of the features, the same probe on scaled ones tells.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from torch import Tensor

from lib.data import Dataset
from lib.errors import InputError, check_choice
from lib.evaluate.accuracy import PROBES_VERSION, settings_of
from lib.evaluate.encoders import FrozenEncoder
from lib.evaluate.features import VERSION as FEATURES_VERSION
from lib.evaluate.features import Features, encode, kept_features
from lib.evaluate.pictures import chosen_pictures, seen_by
from lib.evaluate.probes import (
    FROZEN,
    PROTOCOLS,
    Probe,
    accuracies,
    linear_accuracy,
    linear_predictions,
)
from lib.evaluate.representation import condition_number
from lib.losses import effective_rank, spectrum
from lib.runs.cache import cached
from lib.runs.files import write_atomic, write_json
from lib.runs.folder import outputs
from lib.runs.provenance import provenance

PLAIN, THOROUGH = "sgd", ("mae", "lbfgs")
SCALED = "sgd, scaled"  # the plain probe on features of one size
LINEAR = (PLAIN, *THOROUGH)
DRAWS = 1000  # bootstrap samples of the test pictures
BF16_PICTURES = 2000  # of each split, on which float32 and bf16 are compared
PRECISIONS = ("fp32", "bf16")
BF16_POINTS = 0.1  # by which the probe's answer may move
NAMES = {
    "token": "class token",
    "avg": "mean of patch tokens",
    "pooled": "own pooled feature",
    "sgd": "a plain linear layer of 10 epochs (sgd)",
    "mae": "a batch-normed layer of 90 epochs (mae)",
    "lbfgs": "a converged logistic regression (lbfgs)",
}


@dataclass(frozen=True)
class Interval:
    """A mean in points of accuracy, with the 95 % interval over pictures and probe seeds."""

    mean: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.mean:z.1f} ± {(self.high - self.low) / 2:.1f}"  # z: 0.0, not -0.0

    @property
    def sign(self) -> int:
        """1 or -1 if the whole interval is above or below 0, else 0."""
        return int(self.low > 0) - int(self.high < 0)

    def __neg__(self) -> "Interval":
        return Interval(-self.mean, -self.high, -self.low)


class Answers:
    """Which test pictures each protocol names right: arrays (probe seeds, N) of 0 and 1.

    Every encoder of an audit has its own; all draw the same pictures, so differences are paired.
    """

    def __init__(self, right: dict[str, np.ndarray]) -> None:
        self.right = right

    def draws(self, protocol: str) -> np.ndarray:
        """Percent, one value a bootstrap draw: pictures with replacement, one probe seed."""
        right = self.right[protocol].astype(np.float32)
        seeds, count = right.shape
        each = bootstrap_counts(count) @ right.T * (100 / count)
        which = np.random.default_rng(1).integers(seeds, size=DRAWS)
        return each[np.arange(DRAWS), which]

    def mean(self, protocol: str) -> float:
        """Percent of the pictures, over all probe seeds."""
        return 100 * float(self.right[protocol].mean())


@lru_cache(maxsize=1)
def bootstrap_counts(count: int) -> np.ndarray:
    """(DRAWS, count): how often each of `count` pictures is in each draw with replacement."""
    random = np.random.default_rng(0)
    share = np.full(count, 1 / count)
    return random.multinomial(count, share, size=DRAWS).astype(np.float32)


def difference(a: Answers, of_a: str, b: Answers, of_b: str) -> Interval:
    """Accuracy of `a` under protocol `of_a` minus that of `b` under `of_b`, paired by picture."""
    draws = a.draws(of_a) - b.draws(of_b)
    low, high = np.percentile(draws, [2.5, 97.5])
    return Interval(a.mean(of_a) - b.mean(of_b), float(low), float(high))


@dataclass(frozen=True)
class Settings:
    """What an audit measures.

    seeds: of the trained probes; protocols without randomness run once. budgets: epochs of the
    plain probe. precision: "fp32", or "bf16" where it does not move the probe's answer.
    """

    seeds: tuple[int, ...] = (0, 1, 2)
    budgets: tuple[int, ...] = (1, 3, 10, 30, 100)
    precision: str = "fp32"
    workers: int = 0

    def __post_init__(self) -> None:
        if not self.seeds or len(set(self.seeds)) < len(self.seeds) or min(self.seeds) < 0:
            raise InputError(
                f"seeds must be different numbers of at least 0, got {list(self.seeds)}"
            )
        twice = len(set(self.budgets)) < len(self.budgets)
        if not self.budgets or twice or min(self.budgets) < 1:
            raise InputError(
                f"budgets must be different epochs of at least 1, got {list(self.budgets)}"
            )
        check_choice("precision", self.precision, PRECISIONS)
        if self.workers < 0:
            raise InputError(f"workers must be at least 0, got {self.workers}")


@dataclass
class Page:
    """What the audit found of one feature of one encoder; accuracies in percent.

    accuracy[protocol] = {"validation", "test"}, a value a probe seed. steps: of the plain probe;
    few training pictures leave few. budget: its test accuracy by epochs, with the first seed. gaps:
    by thorough protocol. size: what the plain probe gains on scaled features. report: the linear
    protocol of the best validation accuracy. answers: for paired differences, not written to JSON.
    """

    encoder: str
    feature: str
    dim: int
    effective_rank: float
    condition_number: float
    spectrum: list[float]
    accuracy: dict[str, dict[str, list[float]]]
    steps: int
    budget: dict[int, float]
    gaps: dict[str, Interval]
    size: Interval
    report: str
    answers: Answers

    @property
    def thorough(self) -> str:
        """The thorough protocol that is better on the validation pictures."""
        return max(THOROUGH, key=lambda p: float(np.mean(self.accuracy[p]["validation"])))

    def sentence(self) -> str:
        """What the gap says, in plain words."""
        gap, better = self.gaps[self.thorough], NAMES[self.thorough]
        feature = f"the {NAMES.get(self.feature, self.feature)} of {self.encoder}"
        plain, full = (self.answers.mean(p) for p in (PLAIN, self.thorough))
        numbers = f"{plain:.1f} % against {full:.1f} % under {better}"
        if gap.sign > 0:
            text = f"understates {feature} by {gap} points ({numbers})"
        elif gap.sign < 0:
            text = f"reads {feature} better by {-gap} points ({numbers})"
        else:
            text = (
                f"neither understates nor flatters {feature} beyond chance: {gap} points "
                f"({numbers})"
            )
        text = f"A plain probe of 10 epochs ({self.steps:,} steps) {text}"
        return f"{text}; report {NAMES[self.report]}: {self.answers.mean(self.report):.1f} %."

    def sentence_on_size(self) -> str:
        """What the same probe reads where one number brings the features to mean variance 1."""
        more = f"{self.size} points more" if self.size.mean >= 0 else f"{-self.size} points less"
        chance = "" if self.size.sign else ", which may be chance"
        return (
            f"Scaled to one size, the {NAMES.get(self.feature, self.feature)} of {self.encoder} "
            f"reads {self.answers.mean(SCALED):.1f} % under the same plain probe: {more}{chance}."
        )


# ---- measuring -----------------------------------------------------------------------------------


def audit(
    encoders: Sequence[FrozenEncoder], data: Dataset, settings: Settings | None = None
) -> list[Page]:
    """One page for every feature of every encoder, all on the same pictures and splits.

    Features and probes are kept under outputs/audit, by content: weights, transform, pictures.
    Raises InputError for two encoders of one name.
    """
    settings = settings or Settings()
    names = [encoder.name for encoder in encoders]
    if not names or len(set(names)) < len(names):
        raise InputError(
            f"encoders must be at least one, of different names, got {names}; name them as in "
            "MAE=run:NAME"
        )
    pages = []
    for encoder in encoders:
        for note in encoder.notes:
            print(f"{encoder.name}: {note}")
        chosen = encoder
        if settings.precision == "bf16":
            chosen = settle_bf16(encoder, data, settings.workers)
        features = audited_features(chosen, data, settings.workers)
        for feature in features.x:
            pages.append(measure(chosen, data, features, feature, settings))
    return pages


def audited_features(encoder: FrozenEncoder, data: Dataset, workers: int = 0) -> Features:
    """The features of all pictures, computed once; few large pictures at a time save memory."""
    seen = seen_by(encoder, data)
    batch_size = max(1, min(100, 2**20 // encoder.image_size**2))

    def compute() -> Features:
        return encode(encoder, seen, batch_size, workers)

    what, folder = f"features of {encoder.name}", outputs() / "audit" / "features"
    content = _content(encoder, data)
    found = kept_features(folder, what, content, {}, compute)
    for name, splits in found.x.items():
        _check_readable([*splits.values()], f"{encoder.name}, feature {name}")
    return found


def _check_readable(splits: Sequence[Tensor], where: str) -> None:
    """InputError for features, (N, D) a split, that no probe can read."""
    if not all(x.isfinite().all() for x in splits):
        raise InputError(f"{where}: some features are not finite; the encoder has diverged")
    if all((x == splits[0][0]).all() for x in splits):
        raise InputError(f"{where}: all pictures have one feature; the encoder has collapsed")


def _content(encoder: FrozenEncoder, data: Dataset) -> dict[str, Any]:
    return {
        "encoder": encoder.digest,
        "precision": encoder.precision,
        "images": data.fingerprint,
    }


def settle_bf16(encoder: FrozenEncoder, data: Dataset, workers: int = 0) -> FrozenEncoder:
    """The encoder in bf16 if that moves no probe by more than BF16_POINTS, else in float32.

    Both are compared on at most BF16_PICTURES pictures of each split, and a line says the result.
    `workers` processes decode them.
    """
    fast = encoder.at("bf16")
    if fast.precision != "bf16":
        print(f"{encoder.name}: {fast.notes[-1]}")
        return fast
    sample = chosen_pictures(data, max(BF16_PICTURES, 2 * len(data.class_names)))
    full, half = (audited_features(e, sample, workers) for e in (encoder, fast))
    moved = max(
        abs(linear_accuracy(full, p, name)["test"] - linear_accuracy(half, p, name)["test"])
        for name in full.x
        for p in (PLAIN, "lbfgs")
    )
    safe = moved <= BF16_POINTS
    used = "bf16 is used" if safe else f"more than {BF16_POINTS:g}, so float32 is used"
    print(
        f"{encoder.name}: bf16 moves the probe's answer by {moved:.2f} points on "
        f"{len(sample.test):,} test pictures; {used}"
    )
    return fast if safe else encoder


def measure(
    encoder: FrozenEncoder, data: Dataset, features: Features, feature: str, settings: Settings
) -> Page:
    """The page of one feature."""
    x = features.x[feature]["train"]
    content = _content(encoder, data)
    accuracy, right = {}, {}
    plain = PROTOCOLS[PLAIN]
    assert plain is not None
    readings: dict[str, str | Probe] = {protocol: protocol for protocol in FROZEN}
    readings[SCALED] = replace(plain, prepare="scaled")
    for protocol, probe in readings.items():
        seeds = settings.seeds if PROTOCOLS.get(protocol, plain) else (0,)
        found = [kept_answer(features, probe, feature, seed, content) for seed in seeds]
        accuracy[protocol] = {s: [f[s] for f in found] for s in ("validation", "test")}
        right[protocol] = np.stack([_unpack(f["right"], len(data.test)) for f in found])
    answers = Answers(right)
    budget = {}
    for epochs in settings.budgets:
        longer = replace(plain, epochs=epochs)
        budget[epochs] = kept_answer(features, longer, feature, settings.seeds[0], content)["test"]
    variances = spectrum(x)
    return Page(
        encoder=encoder.name,
        feature=feature,
        dim=x.shape[1],
        effective_rank=effective_rank(x),
        condition_number=condition_number(x),
        spectrum=(variances / variances.sum().clamp_min(1e-300)).tolist(),
        accuracy=accuracy,
        steps=plain.epochs * max(1, len(x) // plain.batch_size),
        budget=budget,
        gaps={p: difference(answers, p, answers, PLAIN) for p in THOROUGH},
        size=difference(answers, SCALED, answers, PLAIN),
        report=max(LINEAR, key=lambda p: float(np.mean(accuracy[p]["validation"]))),
        answers=answers,
    )


def kept_answer(
    features: Features, protocol: str | Probe, feature: str, seed: int, content: dict[str, Any]
) -> dict[str, Any]:
    """{"validation", "test", "right"} of one probe, measured once; "right" as packed bits."""
    settings = {**settings_of(protocol, feature, None, seed), **content}

    def compute() -> dict[str, Any]:
        predicted, found = linear_predictions(features, protocol, feature, seed)
        right = (predicted["test"] == features.y["test"]).numpy()
        return {
            **accuracies(predicted, features.y),
            **found,
            "right": np.packbits(right).tobytes().hex(),
        }

    version = {"features": FEATURES_VERSION, "probes": PROBES_VERSION}
    return cached(outputs() / "audit" / "probes", "probe", settings, version, compute)


def _unpack(text: str, count: int) -> np.ndarray:
    return np.unpackbits(np.frombuffer(bytes.fromhex(text), np.uint8))[:count]


# ---- saying --------------------------------------------------------------------------------------


def compare(pages: Sequence[Page]) -> list[str]:
    """How the order of the encoders depends on the protocol: a sentence a pair and feature."""
    lines = []
    for feature in dict.fromkeys(page.feature for page in pages):
        of = [page for page in pages if page.feature == feature]
        for other in of[1:]:
            lines.append(_compare(of[0], other))
    return lines


def _compare(a: Page, b: Page) -> str:
    short = difference(b.answers, PLAIN, a.answers, PLAIN)
    full = difference(b.answers, "lbfgs", a.answers, "lbfgs")
    orders = short.sign, full.sign
    if orders[0] * orders[1] < 0:
        verdict = "the protocol decides which of the two is better"
    elif all(orders):
        verdict = "both protocols give the same order"
    elif any(orders):
        verdict = f"only the {'plain' if orders[0] else 'converged'} probe tells the two apart"
    else:
        verdict = "neither tells the two apart"
    return (
        f"{NAMES.get(a.feature, a.feature)}: {b.encoder} minus {a.encoder} is {short} points under "
        f"the plain probe and {full} under the converged one: {verdict}."
    )


COLUMNS = ["encoder", "feature", "D", "rank", "condition", *FROZEN, "gap"]


def table(pages: Sequence[Page]) -> pd.DataFrame:
    """The table of an audit as text, a row a page; accuracies of the test pictures, in percent."""
    rows = [
        [
            page.encoder,
            page.feature,
            str(page.dim),
            f"{page.effective_rank:.1f}",
            f"{page.condition_number:.1e}",
            *(f"{page.answers.mean(p):.1f}" for p in FROZEN),
            str(page.gaps[page.thorough]),
        ]
        for page in pages
    ]
    return pd.DataFrame(rows, columns=COLUMNS)


def latex_table(pages: Sequence[Page]) -> str:
    """The table as LaTeX with booktabs (pandas writes it with jinja2, which torch brings)."""
    columns = "ll" + "r" * (len(COLUMNS) - 2)
    text = table(pages).to_latex(index=False, escape=True, column_format=columns)
    return text.replace("±", r"$\pm$")


def as_json(pages: Sequence[Page]) -> list[dict[str, Any]]:
    """The pages as JSON values, each with its sentence."""
    found = []
    for page in pages:
        fields = {k: v for k, v in vars(page).items() if k not in ("answers", "gaps", "size")}
        fields["gaps"] = {protocol: asdict(gap) for protocol, gap in page.gaps.items()}
        fields |= {"size": asdict(page.size), "sentence": page.sentence()}
        found.append({**fields, "sentence_on_size": page.sentence_on_size()})
    return found


def write_audit(folder: Path, pages: Sequence[Page], **more: Any) -> None:
    """folder/audit.json and folder/audit.tex; `more` goes into the JSON with the provenance."""
    content = {"pages": as_json(pages), "comparisons": compare(pages), **more, **provenance()}
    write_json(folder / "audit.json", content)
    write_atomic(folder / "audit.tex", latex_table(pages).encode())
