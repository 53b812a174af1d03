"""Tables of docs/fault_tolerance.md: interruptions, and layouts of devices and processes."""

from __future__ import annotations

from benchmarks.markdown import load, machine, table


def interruptions() -> str:
    """Of each signal how often, in what, and whether the bits came out the same."""
    if (record := load("interruptions")) is None:
        return ""
    head = [
        "signal", "times", "in the search", "in the training", "before the first step",
        "beside a half-written checkpoint", "went on from the newest", "steps done again",
        "runs with the same bits at the end",
    ]  # fmt: skip
    rows = []
    for name in ("SIGKILL", "SIGTERM"):
        made, runs = record[name]["interruptions"], record[name]["runs"]
        working = [row for row in made if row["newest"] != row["newest_before"]]
        training = [row for row in working if row["newest"]["train"]]
        resumed = [row for row in made if row["went_on_from"]]
        right = [
            row
            for row in resumed
            if all(step == row["newest_before"][k] for k, step in row["went_on_from"].items())
        ]
        # Without a step that it was saved at, a process had nothing to lose at the end of a stage.
        lost = [
            row
            for row in working
            if row["stopped_at"] is None and record["steps"] not in row["newest"].values()
        ]
        again = "those since it" if lost else "0"
        rows.append(
            [
                name,
                str(len(made)),
                str(len(working) - len(training)),
                str(len(training)),
                str(len(made) - len(working)),
                str(sum(row["half_written"] for row in made)),
                f"{len(right)} of {len(resumed)}",
                again,
                f"{sum(run['same_bits'] for run in runs)} of {len(runs)}",
            ]
        )
    return table(head, rows) + f"\n{machine(record['provenance'])}.\n"


def agreement() -> str:
    """Of each layout the largest differences, by type of numbers."""
    if (record := load("agreement")) is None:
        return ""
    kinds = ("float64", "float32")
    head = ["processes x devices each"]
    head += [f"{stage}, {kind}: loss, state" for kind in kinds for stage in ("search", "training")]
    head += ["same pictures"]
    rows = []
    for both in zip(*(record[kind] for kind in kinds), strict=True):
        layout = both[0]["layout"]
        height = f", height over {layout['height_shards']}" if layout["height_shards"] > 1 else ""
        parts = [row[stage] for row in both for stage in ("search", "train")]
        rows.append(
            [
                f"{layout['processes']} x {layout['devices']}{height}",
                *(f"{part['losses']:.1e}, {part['state']:.1e}" for part in parts),
                "yes" if all(part["same_pictures"] for part in parts) else "**no**",
            ]
        )
    return table(head, rows) + f"\n{machine(record['provenance'])}.\n"


TABLES = {"interruptions": interruptions, "agreement": agreement}
