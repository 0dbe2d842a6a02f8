"""The page of results is what the committed records say; the statistics behind it."""

import json
import re
import shutil

import matplotlib.image
import pytest
from support import few, same_tensors, small, weights

from lib.evaluate.encoders import frozen_encoder
from lib.notebook.statistics import correct, judge
from lib.runs.files import load_weights, weights_digest
from lib.train import train, train_all
from study import checks, claims, coefficients, explanation, report, tables
from study.figures import draw
from study.plan import OBJECTIVES, SCRATCH, plan


def record(objective: str, seed: int, accuracy: float) -> dict:
    cell = {"token": {"test": accuracy}, "avg": {"test": accuracy}}
    feature = {"condition_number": 10.0, "effective_rank": 5.0, "eigenvalues": [2.0, 1.0]}
    return {
        "part": "objectives",
        "data": "cifar10",
        "objective": objective,
        "seed": seed,
        "run": f"{objective}-{seed}",
        "fields": {"epochs": 40},
        "images": {"train": 50_000, "test": 10_000},
        "accuracy": {protocol: cell for protocol in tables.PROTOCOLS},
        "representation": {"token": feature, "avg": feature},
        "origin": {"commit": "abc", "device": "a machine"},
    }


@pytest.fixture
def records() -> list[dict]:
    pairs = {0: (20.0, 31.0), 1: (21.0, 33.0), 2: (19.0, 29.5)}
    found = []
    for seed, (mae, umae) in pairs.items():
        found += [record("MAE", seed, mae), record("U-MAE", seed, umae)]
    return [*found, record("MAE", 3, 50.0)]  # a seed without its pair


def test_the_pages_hold_what_the_records_say():
    records = report.read_records()
    for path in report.PAGES:
        assert path.read_text() == report.filled(path.read_text(), records), (
            f"{path.name} differs from outputs/reference: run python -m study --report"
        )


def test_every_block_has_a_place_on_a_page_and_every_place_a_block():
    pages = "".join(path.read_text() for path in report.PAGES)
    assert sorted(re.findall("<!-- begin (.*?) -->", pages)) == sorted(report.BLOCKS)


def test_a_gain_pairs_the_seeds_that_both_objectives_have(records):
    found = tables.differences(records, "cifar10", "U-MAE", "sgd", "token")
    assert found == [11.0, 12.0, 10.5]


@pytest.mark.parametrize(
    "values,says",
    [
        ([1.0, 1.1, 0.9], "**higher**"),
        ([-1.0, -1.1, -0.9], "**lower**"),
        ([-1.0, 2.0, 1.0], "cannot tell"),
        ([1.0], "cannot tell (n=1)"),
    ],
)
def test_a_verdict_needs_an_interval_without_zero(values, says):
    (row,) = correct([judge("above 0", values)])
    assert tables.gain_text(row).split(", ")[-1] == says


def test_the_tables_name_the_seeds_the_spread_and_the_verdict(records):
    text = tables.objectives_block(records)
    assert "seeds 0, 1, 2, 3" in text
    assert "| `sgd` | class token | 27.5 ± 15.0 | 31.2 ± 1.8 | - | +11.2" in text
    assert "**higher**" in text


def test_the_gain_stands_on_the_validation_images_as_well(records):
    for r in records:
        for own in r["accuracy"].values():
            own["token"]["validation"] = own["token"]["test"] - (r["objective"] == "U-MAE")
    text = tables.objectives_block(records)
    assert "validation images, class token: `online` +10.2 [+8.3, +12.1], `sgd` +10.2 [" in text


def test_a_block_is_replaced_and_the_text_around_it_kept(records):
    page = "before\n<!-- begin study origin -->\nold\n<!-- end study origin -->\nafter\n"
    once = report.filled(page, records)
    assert "old" not in once and once.startswith("before\n") and once.endswith("after\n")
    assert report.filled(once, records) == once


def test_records_of_single_runs_are_collected_by_part(tmp_path):
    (tmp_path / "runs").mkdir()
    for seed in (0, 1):
        one = {**record("MAE", seed, 1.0), "part": "mask ratio", "x": 1 / 3, "n": 2}
        (tmp_path / "runs" / f"{seed}.json").write_text(json.dumps(one))
    report.collect(tmp_path / "runs", tmp_path / "committed")
    found = report.read_records(tmp_path / "committed")
    assert [r["x"] for r in found] == [0.333333, 0.333333] and found[0]["n"] == 2


def test_records_of_another_machine_stay_and_a_new_measurement_counts(tmp_path):
    runs, committed = tmp_path / "runs", tmp_path / "committed"
    for accuracy, seeds in ((1.0, (0, 1)), (2.0, (1, 2))):
        shutil.rmtree(runs, ignore_errors=True)
        runs.mkdir()
        for seed in seeds:
            one = {**record("MAE", seed, accuracy), "part": "mask ratio"}
            (runs / f"{seed}.json").write_text(json.dumps(one))
        report.collect(runs, committed)
    found = report.read_records(committed)
    assert {r["seed"]: r["accuracy"]["sgd"]["token"]["test"] for r in found} == {0: 1, 1: 2, 2: 2}
    assert len(found) == 3
    before = (committed / "mask_ratio.json").read_bytes()
    shutil.rmtree(runs)
    report.collect(runs, committed)  # a machine that trained nothing
    assert (committed / "mask_ratio.json").read_bytes() == before


def test_a_seed_counts_when_all_objectives_are_measured(tmp_path):
    (tmp_path / "runs").mkdir()
    measured = [(name, 0) for name in OBJECTIVES] + [("MAE", 1), ("U-MAE", 1)]
    for number, (name, seed) in enumerate(measured):
        (tmp_path / "runs" / f"{number}.json").write_text(json.dumps(record(name, seed, 1.0)))
    report.collect(tmp_path / "runs", tmp_path / "committed")
    found = report.read_records(tmp_path / "committed")
    assert sorted(r["objective"] for r in found) == sorted(OBJECTIVES)
    assert {r["seed"] for r in found} == {0}


def test_one_pair_is_shown_without_an_interval(records):
    text = tables.objectives_block(records[:2])
    assert "+11.0, cannot tell (n=1)" in text and "nan" not in text


def test_the_front_page_shows_data_sets_with_enough_pairs(records):
    assert "| cifar10 | 20.0 ± 1.0 → 31.2 ± 1.8: +11.2 [" in tables.summary_block(records)
    assert "7 runs on a machine" in tables.summary_block(records)
    assert "cifar10" not in tables.summary_block(records[:4])


def every_part(records: list[dict]) -> list[dict]:
    """Records of three pairs of runs for every part of the study."""
    pairs = [{**r, "budget": budget(10.0 + r["seed"])} for r in records]
    for r in records[:6]:
        own = swept("mask ratio", r["objective"], r["seed"], 20.0)
        for part, fields in (("finetuning", {}), ("mask ratio", {"mask_ratio": 0.5})):
            pairs.append({**own, "part": part, "fields": own["fields"] | fields})
        pairs.append(swept("variants", "falling", r["seed"], 21.0))
    for r in records[:2]:
        along = [{"epoch": epoch, "accuracy": r["accuracy"]} for epoch in (50, 200)]
        pairs.append({**r, "part": "long", "along": along})
    return pairs + figure5({0.0: 20.0, 0.001: 31.0, 0.1: 25.0})


def budget(value: float) -> list[dict]:
    return [
        {"prepare": p, "lr": lr, "epochs": e}
        | {f: {"test": value + e / 100} for f in tables.FEATURES}
        for p, lr, e in checks.BUDGETS
    ]


def test_every_claim_has_its_figure():
    found = claims.study_claims(report.read_records())
    assert found
    for claim in found:
        assert (report.RECORDS / claims.FIGURES[claim["part"]].format(**claim)).is_file()


def test_every_part_with_records_has_its_figure(records, tmp_path):
    written = draw(every_part(records), tmp_path)
    parts = ("gains", "budget", "coefficients", "variants", "mask_ratios")
    parts += ("finetuning", "along")
    assert written == [f"{part}_cifar10{'_U-MAE' * (part == 'gains')}.png" for part in parts]
    for name in written:
        pixels = matplotlib.image.imread(tmp_path / name)[..., :3]
        assert (abs(pixels - pixels[0, 0]).max(-1) > 0.1).mean() > 0.01
    assert draw([], tmp_path) == []


def test_the_runs_of_seed_0_are_kept_and_are_runs_again(tmp_path, outputs, monkeypatch, capsys):
    configs = [small(epochs=1, seed=seed, snapshots=0) for seed in (0, 1)]
    runs = train_all(configs, few(configs[0]), jobs=1)
    records = [{**record("U-MAE", run.config.seed, 1.0), "run": run.folder.name} for run in runs]
    report.keep_runs(outputs / "runs", records, tmp_path / "kept")
    (name,) = json.loads((tmp_path / "kept" / "manifest.json").read_text())
    assert name == runs[0].folder.name
    kept = (tmp_path / "kept" / name / "metrics.jsonl").read_bytes()
    (runs[0].folder / "metrics.jsonl").write_text("of another machine")
    report.keep_runs(outputs / "runs", records, tmp_path / "kept")
    assert (tmp_path / "kept" / name / "metrics.jsonl").read_bytes() == kept
    digest = frozen_encoder(f"run:{name}").digest
    (tmp_path / "kept").rename(tmp_path / "runs")
    monkeypatch.setenv("UMAE_OUTPUTS", str(tmp_path))
    again = train(configs[0], few(configs[0]))
    assert "reusing" in capsys.readouterr().out
    assert same_tensors(weights(again), weights(runs[0]))
    assert frozen_encoder(f"run:{name}").digest == digest


def test_the_committed_runs_are_what_their_manifest_says():
    manifest = json.loads((report.RUNS / "manifest.json").read_text())
    assert sorted(manifest) == sorted(p.name for p in report.RUNS.iterdir() if p.is_dir())
    for name, origin in manifest.items():
        weights_file = report.RUNS / name / "model.safetensors"
        load_weights(weights_file)  # raises if a tensor is not what the digest says
        assert weights_digest(weights_file) == origin["sha256"]
        assert weights_file.stat().st_size < 4 * 2**20
        assert frozen_encoder(str(report.RUNS / name)).image_size in (32, 64)


def test_the_plan_names_every_run_once_and_pairs_every_seed():
    keys = [(p.part, p.data, p.objective, p.seed, *sorted(p.fields.items())) for p in plan()]
    assert len(keys) == len(set(keys))
    twins: dict = {}
    for p in plan():
        if p.part == "objectives":
            twins.setdefault((p.data, p.seed), set()).add(p.objective)
    assert len(twins) == 10
    assert all(names == set(OBJECTIVES) for names in twins.values())


def swept(part: str, objective: str, seed: int, value: float, **fields) -> dict:
    """A record of a sweep on CIFAR-10."""
    lam = {"MAE": 0.0}.get(objective, 0.001)
    own = {"part": part, "fields": {"lam": lam, **fields}, "cosine_weight": 96 * lam}
    return {**record(objective, seed, value), **own, "finetuned": {"best": value}}


def test_coefficients_stand_in_the_order_of_their_weight_on_the_squared_cosine():
    rows = [
        swept("coefficients", "U-MAE", 0, 30.0, uniformity="spectral"),
        swept("coefficients", "U-MAE", 1, 32.0, uniformity="spectral"),
        *(swept("coefficients", "MAE", seed, 20.0 + seed) for seed in range(3)),
    ]
    other = [
        {**swept("coefficients", "U-MAE", s, 9.0, uniformity="euclidean"), "cosine_weight": None}
        for s in range(2)
    ]
    lines = coefficients.coefficients_block(rows + other).splitlines()[2:]
    assert lines[0].startswith("| cifar10 | none (MAE) | 0 | 0 | 20.5 ± 0.7 |")  # without seed 2
    assert lines[1].startswith("| cifar10 | spectral | 0.001 | 0.096 | 31.0 ± 1.4 |")
    assert lines[2].startswith("| cifar10 | euclidean | 0.001 | another term | 9.0 ± 0.0 |")


def test_mae_of_more_seeds_is_averaged_over_those_of_the_sweep():
    rows = [swept("coefficients", "MAE", seed, 20.0 + seed) for seed in range(5)]
    rows += [swept("mean token", "U-MAE", seed, 30.0, pool="avg") for seed in range(3)]
    found = coefficients.by_mean_token_lam(rows, "cifar10")
    assert [sorted(own) for own in found.values()] == [[0, 1, 2], [0, 1, 2]]


def figure5(protocol_values: dict[float, float]) -> list[dict]:
    """Three seeds of the spectral form: {lam: accuracy}, a tenth of a point apart."""
    rows = []
    for seed in range(3):
        for lam, value in protocol_values.items():
            fields = {"lam": lam} | ({"uniformity": "spectral"} if lam else {})
            own = swept("coefficients", "U-MAE" if lam else "MAE", seed, value + 0.1 * seed * lam)
            rows.append({**own, "fields": fields, "cosine_weight": 96 * lam})
    return rows


def test_rise_and_fall_are_judged_by_seed():
    rows = figure5({0.0: 20.0, 0.001: 31.0, 0.1: 32.0})
    rise, fall = claims.study_claims(rows)[:2]
    assert rise["verdict"] == "agrees" and rise["differences"][0] == 11.0
    assert fall["verdict"] == "does not agree"
    line = claims.study_block(rows).splitlines()[2]
    assert line.startswith(
        "| Figure 5 (a) | cifar10 | `online`: `lam` 0.001 minus `lam` 0, above 0 | +11.0 "
    )


def test_the_claims_of_every_part_are_judged_together(records):
    tuned = [
        swept("finetuning", name, seed, value + 0.1 * seed * (name == "U-MAE"))
        for name, value in (("MAE", 40.0), ("U-MAE", 39.8), (SCRATCH, 35.0))
        for seed in range(3)
    ]
    ratios = [
        swept("mask ratio", name, seed, 20.0 + (10 + seed) * ratio, mask_ratio=ratio)
        for name in ("MAE", "U-MAE")
        for ratio in (0.0, 0.75)
        for seed in range(3)
    ]
    found = claims.study_claims([*records, *tuned, *ratios])
    by_text = {(c["part"], c["claim"]): c for c in found}
    assert len(found) == 5 + 3 + 2 * 3  # protocols, finetuning, ratio 0.75 against 0 (two features)
    assert by_text["finetuning", "U-MAE minus MAE, above -0.5"]["verdict"] == "agrees"
    assert by_text["finetuning", "MAE minus from scratch, above 0"]["differences"] == [5.0] * 3
    ratio = by_text["mask ratio", "`sgd`, class token: MAE at ratio 0.75 minus ratio 0, above 0"]
    assert ratio["verdict"] == "agrees"
    assert max(c["p"] for c in found) < 0.05 and {c["holm"] for c in found} == {"agrees"}


def test_the_curves_of_the_coefficients_have_every_weight_but_that_of_another_term():
    rows = figure5({0.0: 20.0, 0.001: 31.0, 0.1: 25.0})
    other = [
        {**swept("coefficients", "U-MAE", s, 9.0, uniformity="euclidean"), "cosine_weight": None}
        for s in range(3)
    ]
    found = coefficients.curves([*rows, *other], "cifar10", "sgd")
    assert list(found) == ["spectral"] and list(found["spectral"]) == [0.0, 0.096, 96 * 0.1]


def test_every_protocol_chooses_its_coefficient_on_validation():
    rows = [swept("coefficients", "MAE", seed, 20.0) for seed in range(3)]
    for lam, value, validation in ((1e-4, 30.0, 1.0), (1e-3, 21.0, 2.0), (1e-2, 40.0, 1.5)):
        for seed in range(3):
            own = swept("mean token", "U-MAE", seed, value + 0.1 * seed) | {"fields": {"lam": lam}}
            cell = {"avg": {"test": value + 0.1 * seed, "validation": validation}}
            rows.append(own | {"accuracy": {p: cell for p in tables.PROTOCOLS}})
    found = coefficients.chosen_on_validation(rows)
    assert [c["protocol"] for c in found] == list(tables.PROTOCOLS)
    assert {c["lam"] for c in found} == {1e-3}  # not the best on the test images
    assert found[0]["differences"] == pytest.approx([1.0, 1.1, 1.2])
    assert found[0]["verdict"] == found[0]["holm"] == "agrees"
    lines = coefficients.mean_token_block(rows).splitlines()
    assert lines[2].startswith("| cifar10 | 0 | 20.0 ± 0.0 |")
    assert "| cifar10 | `online` | 0.001 | +1.1 [+0.9, +1.3] | 3 | agrees | agrees |" in lines


def test_mask_ratios_pair_the_seeds():
    rows = [
        swept("mask ratio", name, seed, value, mask_ratio=0.5)
        for name, seed, value in (("MAE", 0, 20.0), ("MAE", 1, 22.0), ("U-MAE", 1, 25.0))
    ]
    line = tables.mask_ratios_block(rows).splitlines()[2]
    assert line == "| cifar10 | class token | plain | 0.5 | 22.0 | 25.0 | +3.0 | 1 |"


def test_the_papers_ratio_stands_against_the_others_on_the_seeds_that_all_have():
    values = {0.0: (0, 1, 2), 0.75: (0, 1, 2), 0.9: (1, 2)}
    rows = [
        swept(
            "mask ratio", "MAE", seed, 20.0 + 10 * ratio + seed * (ratio == 0.75), mask_ratio=ratio
        )
        for ratio, seeds in values.items()
        for seed in seeds
    ]
    rows += [swept("mask ratio", "U-MAE", 0, 20.0, mask_ratio=0.0)]
    lines = tables.mask_ratios_block(rows).splitlines()
    assert (
        "| cifar10 | class token | plain | MAE | +9.0 [+2.6, +15.4] | +0.0 [-6.4, +6.4] | 2 |"
        in lines
    )


def test_finetuning_stands_beside_the_probe_of_the_same_encoders(records):
    tuned = [swept("finetuning", "MAE", s, 40.0 + s) for s in range(2)]
    tuned.append(swept("finetuning", SCRATCH, 0, 35.0))
    lines = tables.finetuning_block([*records, *tuned]).splitlines()[2:]
    assert lines == [
        "| cifar10 | MAE | 40.5 ± 0.7 | 20.5 ± 0.7 | 2 |",
        "| cifar10 | from scratch | 35.0 | - | 1 |",
    ]


def test_the_long_pair_is_read_along_training(records):
    pair = []
    for r in records[:2]:
        along = [{"epoch": epoch, "accuracy": r["accuracy"]} for epoch in (50, 200)]
        pair.append({**r, "part": "long", "along": along})
    lines = tables.along_block(pair).splitlines()[2:]
    assert lines[1] == "| cifar10 | class token | 200 | 20.0 → 31.0 | 20.0 → 31.0 | 20.0 → 31.0 |"
    assert lines[3].startswith("| cifar10 | mean token | 200 | 20.0 → 31.0 |")


def checked(objective: str, seed: int, tuned: float, rotated: float) -> dict:
    """A record with checks: plain 10 (MAE) or 20, batch-normed 20, whitened 20."""
    plain = {"MAE": 10.0, "U-MAE": 20.0}[objective] + 0.1 * seed
    turned = [{"sgd": {"test": rotated + k}, "mae": {"test": 20.0}} for k in (3, 2, 1, 0)]
    names = ("plain, rate tuned", "Adam, rate and decay tuned", "whitened")
    own = {name: {"test": tuned + 0.1 * seed} for name in names} | {"rotated": turned}
    own |= {"scaled": {"test": tuned - 1 + 0.1 * seed}, "centred": {"test": plain}}
    own["rotated, one size"] = [{"sgd": {"test": 12.0 + 0.1 * seed}} for _ in range(4)]
    found = record(objective, seed, 20.0)
    found["accuracy"] = {**found["accuracy"], "sgd": {f: {"test": plain} for f in ("token", "avg")}}
    return {**found, "checks": {"token": own, "avg": own}}


def test_predictions_are_borne_out_or_spoken_against():
    rows = [checked("MAE", s, 19.0, 5.0 + 0.1 * s) for s in range(3)]
    rows += [checked("U-MAE", s, 20.0, 8.0 + 0.3 * s) for s in range(3)]
    lines = explanation.explanation_block(rows).splitlines()[2:]
    verdicts = [line.split(" | ")[-1].rstrip(" |") for line in lines]
    assert verdicts == [
        "bears it out",  # batch-normed, 10 points less
        "bears it out",  # the rate tuned: 1 of 10 points is left
        "bears it out",  # one size: the same
        "bears it out",
        "speaks against it",  # and that point is told from none
        "speaks against it",
        "speaks against it",
        "speaks against it",  # whitened, U-MAE still reads 1 point better
        "no difference is seen",
        "speaks against it",  # conditioned alike, 3 points are left
        "no difference is seen",  # and of one size: equal
        "speaks against it",  # at condition 100 MAE reads 3 points less than as it is
        "bears it out",
        "no difference is seen",
        "no difference is seen",
    ]


def test_predicted_and_measured_steps_stand_side_by_side():
    rows = []
    for objective, low in (("MAE", 10.0), ("U-MAE", 20.0)):
        for seed in range(2):
            r = checked(objective, seed, 19.0, 5.0)
            curve = [
                {"steps": 1000 * k, "predicted": low + k, "measured": low + 2 * k + seed}
                for k in (1, 2)
            ]
            r["checks"]["token"]["steps"] = {"curve": curve}
            rows.append(r)
    line = explanation.steps_block(rows).splitlines()[3]
    assert line == (
        "| cifar10 | 2,000 | 12.0 ± 0.0 | 22.0 ± 0.0 | 10.0 ± 0.0 "
        "| 14.5 ± 0.7 | 24.5 ± 0.7 | 10.0 ± 0.0 | 2 |"
    )


def test_the_gain_stands_beside_the_length_of_the_probe():
    rows = []
    for seed in range(3):
        for objective, low in (("MAE", 10.0), ("U-MAE", 20.0)):
            rows.append({**record(objective, seed, low), "budget": budget(low + seed)})
    lines = explanation.budget_block(rows).splitlines()[2:]
    assert len(lines) == 20  # ten probes of each feature
    assert lines[2] == (
        "| cifar10 | class token | raw | 0.01 | 100 "
        "| 12.0 ± 1.0 | 22.0 ± 1.0 | +10.0 [+10.0, +10.0] | 3 |"
    )


def test_a_part_without_records_says_how_to_get_them(records):
    for block in (
        coefficients.coefficients_block,
        claims.study_block,
        explanation.budget_block,
        coefficients.mean_token_block,
        tables.mask_ratios_block,
        tables.along_block,
    ):
        assert "python -m study" in block([])


def test_the_compute_of_a_shared_run_counts_once(records):
    tuned = {**records[0], "part": "finetuning", "finetuned": {"best": 1.0, "seconds": 1800.0}}
    text = tables.origin_block([*records, tuned])
    assert text.startswith("8 records; trained at commit abc; one thread a run;")
    assert "machines: a machine in bf16 (8)." in text
    assert "7 runs, 14 million images, 3 core hours" in text and "(1,300 in bf16)" in text
    assert "1 runs, 0.5 core hours" in text


def test_records_of_another_precision_are_counted_apart(records):
    """470 images/s in float32: 7 runs of 2 million images take 8.3 hours, not 3."""
    origin = {**records[0]["origin"], "precision": "fp32"}
    text = tables.origin_block([{**r, "origin": origin} for r in records])
    assert "a machine in fp32 (7)." in text and "14 million images, 8 core hours" in text
    mixed = tables.origin_block([records[0], {**records[1], "origin": origin}])
    assert "a machine in bf16 (1), a machine in fp32 (1)." in mixed
    assert "(1,300 in bf16, 470 in fp32)" in mixed


def test_the_claims_of_the_theory_are_those_of_the_executed_notebooks(tmp_path):
    for k, name in enumerate(claims.THEORY):
        head = "| where | claim | computed | verdict |\n|---|---|---|---|\n"
        text = [head, f"| {k} | a | b | holds |"]
        outputs = [{"data": {"text/markdown": "# other"}}, {"data": {"text/markdown": text}}]
        cells = [{"cell_type": "markdown"}, {"outputs": outputs}, {"outputs": [{"name": "stdout"}]}]
        (tmp_path / f"{name}.ipynb").write_text(json.dumps({"cells": cells}))
    lines = claims.theory_block([], tmp_path).splitlines()
    assert lines[2:] == [f"| {k} | a | b | holds | `{n}` |" for k, n in enumerate(claims.THEORY)]


def test_a_loss_is_no_gain_that_is_left():
    """Rate tuned, U-MAE reads 1 point less than MAE: the prediction asked for no gain."""
    rows = [checked("MAE", s, 20.0, 5.0) for s in range(3)]
    rows += [checked("U-MAE", s, 19.0, 5.0) for s in range(3)]
    lines = explanation.explanation_block(rows).splitlines()
    (line,) = [line for line in lines if "With the plain probe's rate tuned" in line]
    assert line.endswith("| -1.0 [-1.0, -1.0] | 3 | no gain, but a loss |")
