"""Tables of whole runs: scores and budgets, shipped weights, interruptions, layouts of devices."""

from __future__ import annotations

import collections
from collections.abc import Mapping, Sequence
from typing import Any

from benchmarks import RESULTS
from benchmarks.tables import load, origin, table
from manas_jax.data import rain
from manas_jax.metrics import PSNR_CAP

RUNS = {
    "quickstart": "quickstart: embedded photographs, synthetic rain, 3 held out",
    "rain100l": "rain100l: Rain100L, 100 test pairs",
}
PRETRAINED = ("rain100l", "general")


def scores() -> str:
    """PSNR and SSIM of the runs before and after restoration, and the cost of the network."""
    head = ["run", "PSNR / SSIM on Y", "on RGB", "parameters", "GFLOP/image", "s/image"]
    rows = []
    for name, title in RUNS.items():
        result = load(f"runs/{name}")["evaluate"]
        before, after = (result["mean"][side] for side in ("input", "output"))
        rows.append(
            [
                title,
                *(
                    f"{before[f'{c}_psnr']:.2f} / {before[f'{c}_ssim']:.3f} → "
                    f"**{after[f'{c}_psnr']:.2f} / {after[f'{c}_ssim']:.3f}**"
                    for c in ("y", "rgb")
                ),
                *_costs(result),
            ]
        )
    return table(head, rows)


def budgets() -> str:
    """Steps, minutes and machines of the runs."""
    head = ["run", "search", "training", "seed", "machine", "commits, date"]
    rows = []
    for name in RUNS:
        run = load(f"runs/{name}")
        last = run["provenance"][-1]
        commits = dict.fromkeys(start["commit"][:9] for start in run["provenance"])
        rows.append(
            [
                name,
                *(_budget(run[stage]) for stage in ("search", "train")),
                str(run["config"]["seed"]),
                f"{last['machine']['processor']}, {last['machine']['cores']} cores, "
                f"jax {last['versions']['jax']}",
                f"{', '.join(commits)}, {last['date'][:10]}",
            ]
        )
    return table(head, rows)


def pretrained() -> str:
    """Scores of the shipped weights on Rain100L's test pairs, and the cost of their networks."""
    head = [
        "weights", "PSNR / SSIM on Y", "with `--self-ensemble`", "parameters", "GFLOP/image",
        "s/image", "training, validation"
    ]  # fmt: skip
    rows = []
    for name in PRETRAINED:
        record = load(f"pretrained/{name}")
        result, train = record["evaluate"], record["training"]["train"]
        trainings = [log["train"] for log in record.get("earlier_trainings", [])] + [train]
        before, after, ensemble = (
            "{y_psnr:.2f} / {y_ssim:.3f}".format(**mean) if mean else "–"
            for mean in map(result["mean"].get, ("input", "output", "self_ensemble"))
        )
        rows.append(
            [
                f"[{name}](results/pretrained/{name}.svg)",
                f"{before} → **{after}**",
                ensemble,
                *_costs(result),
                f"{_budget(*trainings)}, {train['validation']['psnr']:.2f} dB",
            ]
        )
    return table(head, rows)


def gallery() -> str:
    """Scores of the pictures of the gallery before and after restoration."""
    rows = [
        [name.replace("_", " "), *(_score(sides[side]) for side in ("input", "output"))]
        for name, sides in load("gallery")["pictures"].items()
    ]
    return table(["picture", "rainy: PSNR / SSIM on Y", "de-rained"], rows)


def _score(scores: dict[str, float]) -> str:
    if scores["y_psnr"] >= PSNR_CAP:
        return "as the clean one"
    return f"{scores['y_psnr']:.2f} / {scores['y_ssim']:.3f}"


def held_out() -> str:
    """Gain of the shipped weights on held-out pairs of each dataset."""
    records = {name: load(f"pretrained/{name}").get("held_out", {}) for name in PRETRAINED}
    datasets = dict.fromkeys(dataset for record in records.values() for dataset in record)
    rows = []
    for dataset in datasets:
        known = [record[dataset] for record in records.values() if dataset in record]
        gains = [_gain(record.get(dataset)) for record in records.values()]
        before = "{y_psnr:.2f} / {y_ssim:.3f}".format(**known[0]["input"])
        rows.append([dataset, str(known[0]["pairs"]), before, *gains])
    return table(["dataset", "pairs", "rainy", *records], rows)


def leave_one_out() -> str:
    """Gain on each dataset of a training on all of them, and of one that has left it out."""
    trainings = load("leave_one_out")["trainings"]
    rows = []
    for dataset, scores in trainings["all"]["held_out"].items():
        left_out = trainings.get(f"without_{dataset}")
        if left_out:
            before = "{y_psnr:.2f} / {y_ssim:.3f}".format(**scores["input"])
            gains = [_gain(scores), _gain(left_out["held_out"][dataset])]
            rows.append([dataset, str(scores["pairs"]), before, *gains])
    return table(["dataset", "pairs", "rainy", "trained on all", "trained without it"], rows)


def appearance() -> str:
    """Gain on each dataset of trainings with one appearance of synthetic rain, seed by seed."""
    groups = _by_group("appearance")
    return _gains({name: groups[name] for name in (*rain.APPEARANCES, rain.MIXED)})


def versions() -> str:
    """Gain on each dataset of trainings with as many pictures of fewer scenes, seed by seed."""
    return _gains(_by_group("versions"))


def versions_validation() -> str:
    """Validation scores of the same trainings at a quarter, half, three quarters and the end."""
    groups = _by_group("versions")
    curves = {
        name: [training["training"]["validation_curve"] for training in trainings]
        for name, trainings in groups.items()
    }
    steps = next(iter(curves.values()))[0]["steps"]
    rows = []
    for step in (steps[len(steps) * quarter // 4 - 1] for quarter in range(1, 5)):
        scores = [
            ", ".join(f"{curve['psnr'][curve['steps'].index(step)]:.2f}" for curve in found)
            for found in curves.values()
        ]
        rows.append([f"{step:,}", *scores])
    return table(["step", *groups], rows)


def _by_group(experiment: str) -> dict[str, list[dict[str, Any]]]:
    """Trainings of `tools.score_trainings` that are called GROUP_SEED, seed by seed."""
    groups = collections.defaultdict(list)
    for name, training in sorted(load(experiment)["trainings"].items()):
        groups[name.rpartition("_")[0]].append(training)
    return groups


def _gains(groups: Mapping[str, Sequence[Mapping[str, Any]]]) -> str:
    """A row for each dataset, with the scores of all trainings of each group."""
    rows = []
    for dataset, scores in next(iter(groups.values()))[0]["held_out"].items():
        before = "{y_psnr:.2f} / {y_ssim:.3f}".format(**scores["input"])
        gains = [
            ", ".join(_gain(training["held_out"][dataset]) for training in trainings)
            for trainings in groups.values()
        ]
        rows.append([dataset, str(scores["pairs"]), before, *gains])
    return table(["dataset", "pairs", "rainy", *groups], rows)


def recipe() -> str:
    """The trials of a recipe: short trainings, scored on validation pairs."""
    head = ["trial", "parameters", "GFLOP/image", "steps", "min", "seed", "validation PSNR / SSIM"]
    rows = []
    for file in sorted((RESULTS / "recipe").glob("*.json")):
        trial = load(f"recipe/{file.stem}")
        train = trial["train"]
        rows.append(
            [
                trial["change"],
                f"{trial['parameters']:,}",
                f"{2 * trial['macs'] / 1e9:.1f}",
                f"{train['steps']:,}",
                f"{(train['seconds'] + train['compile_seconds']) / 60:.0f}",
                str(trial["config"]["seed"]),
                "{psnr:.2f} / {ssim:.4f}".format(**train["validation"]),
            ]
        )
    return table(head, rows)


def interruptions() -> str:
    """For each signal: how many, when, and whether runs ended with the same bits."""
    record = load("robustness/interruptions")
    head = [
        "signal", "times", "during the search", "during the training", "before the first step",
        "with a half-written checkpoint", "resumed from the newest", "steps repeated",
        "runs that ended with the same bits",
    ]  # fmt: skip
    rows = []
    for name in ("SIGKILL", "SIGTERM"):
        events, runs = record[name]["interruptions"], record[name]["runs"]
        stepping = [event for event in events if event["newest"] != event["newest_before"]]
        training = [event for event in stepping if event["newest"]["train"]]
        resumed = [event for event in events if event["went_on_from"]]
        from_newest = [
            event
            for event in resumed
            if all(step == event["newest_before"][k] for k, step in event["went_on_from"].items())
        ]
        # A process that was not stopped at a saved step loses steps, except at the end of a stage.
        lost = [
            event
            for event in stepping
            if event["stopped_at"] is None and record["steps"] not in event["newest"].values()
        ]
        rows.append(
            [
                name,
                str(len(events)),
                str(len(stepping) - len(training)),
                str(len(training)),
                str(len(events) - len(stepping)),
                str(sum(event["half_written"] for event in events)),
                f"{len(from_newest)} of {len(resumed)}",
                "those since it" if lost else "0",
                f"{sum(run['same_bits'] for run in runs)} of {len(runs)}",
            ]
        )
    return table(head, rows) + f"\n{origin(record['provenance'])}.\n"


def agreement() -> str:
    """For each layout of devices and processes the largest differences, by dtype."""
    record = load("robustness/agreement")
    kinds = ("float64", "float32")
    head = ["processes x devices per process"]
    head += [f"{stage}, {kind}: loss, state" for kind in kinds for stage in ("search", "training")]
    head += ["same pictures"]
    rows = []
    for both in zip(*(record[kind] for kind in kinds), strict=True):
        layout = both[0]["layout"]
        height = f", height over {layout['height_shards']}" if layout["height_shards"] > 1 else ""
        stages = [row[stage] for row in both for stage in ("search", "train")]
        rows.append(
            [
                f"{layout['processes']} x {layout['devices']}{height}",
                *(f"{stage['losses']:.1e}, {stage['state']:.1e}" for stage in stages),
                "yes" if all(stage["same_pictures"] for stage in stages) else "**no**",
            ]
        )
    return table(head, rows) + f"\n{origin(record['provenance'])}.\n"


def _gain(scores: dict[str, Any] | None) -> str:
    """The mean PSNR and SSIM after restoration, and the gain in PSNR."""
    if scores is None:
        return "–"
    gain = scores["output"]["y_psnr"] - scores["input"]["y_psnr"]
    return "{y_psnr:.2f} / {y_ssim:.3f}".format(**scores["output"]) + f" ({gain:+.2f})"


def _costs(result: dict[str, Any]) -> list[str]:
    """Parameters, GFLOP and seconds per image."""
    return [
        f"{result['parameters']:,}",
        f"{2 * result['macs'] / 1e9:.1f} at {'x'.join(map(str, result['macs_at']))}",
        f"{result['seconds_a_picture']:.2f}",
    ]


def _budget(*summaries: dict[str, Any]) -> str:
    minutes = sum(s["seconds"] + s["compile_seconds"] for s in summaries) / 60
    return f"{sum(s['steps'] for s in summaries):,} steps, {minutes:.0f} min"


TABLES = {
    make.__name__: make
    for make in (
        scores,
        budgets,
        pretrained,
        gallery,
        held_out,
        leave_one_out,
        appearance,
        versions,
        versions_validation,
        recipe,
        interruptions,
        agreement,
    )
}
