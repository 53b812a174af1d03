"""The command and its stages: order, skipping, and a one-line error for every mistake."""

import errno
import json
import os
import shutil
import subprocess
import sys

import jax
import numpy as np
import pytest
from PIL import Image

from manas_jax import main
from manas_jax.errors import UserError
from manas_jax.models.network import Network
from manas_jax.models.variables import init_variables
from manas_jax.search import bilevel_search, supernet
from manas_jax.space import Genotype
from manas_jax.training import run as train_run
from manas_jax.workdir.weights import load_weights, save_weights


def _one_line(finished_process, *parts):
    """Asserts an error of one line with all of these parts, and no traceback."""
    assert finished_process.returncode != 0
    assert "Traceback" not in finished_process.stderr
    lines = [x for x in finished_process.stderr.splitlines() if "error: " in x.lower()]
    assert len(lines) == 1, finished_process.stderr
    for part in parts:
        assert part in lines[0]


TINY = "--config=configs/tiny.py"


@pytest.mark.parametrize(
    ("arguments", "parts"),
    [
        (["--config.search.stepz=3"], ["stepz", "steps"]),
        (["--config.serch.steps=3"], ["serch", "search"]),
        (["--config.search.steps=abc"], ["search.steps", "abc"]),
        (["--config.data.source=folder", "--config.data.root=gone"], ["data.root", "gone"]),
    ],
)
def test_wrong_flags_are_one_line(tmp_path, run_command, arguments, parts):
    process = run_command(TINY, f"--workdir={tmp_path / 'run'}", *arguments)
    _one_line(process, *parts)
    assert not (tmp_path / "run" / "search").exists()


def test_tensorflow_is_imported_on_first_use():
    script = (
        "import sys, manas_jax.main as _; from manas_jax.data.lazy_tf import tf\n"
        "print('tensorflow' in sys.modules, int(tf.constant(3)), 'tensorflow' in sys.modules)"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, timeout=300
    )
    assert done.stdout.split() == ["False", "3", "True"], done.stderr


def test_all_stages_write_their_files(finished):
    found = {p.name for p in finished.iterdir()}
    assert {"config.json", "genotype.json", "report.html", "search", "train", "evaluate"} <= found
    for stage in ("search", "train"):
        summary = json.loads((finished / stage / "summary.json").read_text())
        assert summary["steps"] == 6
        assert summary["flops_per_step"] > 0
        assert summary["images_per_second"] > 0
        assert list((finished / stage).glob("events.out.tfevents.*"))
        assert list((finished / stage / "checkpoints" / "6").iterdir())
    assert 10 < summary["input"]["psnr"] < 40  # of the training
    genotype = Genotype.load(finished / "genotype.json")
    assert "none" not in {e for cell in genotype.attention for m in cell for e in m}
    assert not list(finished.rglob("*.tmp*"))


def test_finished_stages_are_skipped(tmp_path, monkeypatch, finished, loop_config):
    """'all' in a finished workdir runs nothing; with one unfinished stage, only that one."""
    workdir = tmp_path / "run"
    shutil.copytree(finished, workdir)
    ran = []
    stages = {name: lambda *_, name=name: ran.append(name) for name in main._RUN}
    monkeypatch.setattr(main, "_RUN", stages)
    (workdir / "report.html").unlink()
    main.run(loop_config(), workdir)
    assert ran == []
    assert (workdir / "report.html").exists()
    (workdir / "evaluate" / "scores.json").unlink()
    main.run(loop_config(), workdir)
    assert ran == ["evaluate"]
    main.run(loop_config(stage="train"), workdir)
    assert ran == ["evaluate", "train"]
    # Scores of a network whose training is not finished, or is done anew, are old.
    (workdir / "evaluate" / "scores.json").write_text("{}")
    (workdir / "train" / "summary.json").unlink()
    main.run(loop_config(), workdir)
    assert ran[2:] == ["train", "evaluate"]


def test_finished_stage_compiles_nothing(tmp_path, monkeypatch, finished, loop_config):
    workdir = tmp_path / "run"
    shutil.copytree(finished, workdir)
    monkeypatch.setattr(supernet, "SearchStep", _never_compiled)
    monkeypatch.setattr(train_run, "TrainStep", _never_compiled)
    before = (workdir / "train" / "summary.json").read_bytes()
    genotype = bilevel_search.search(loop_config(), workdir)
    assert genotype == Genotype.load(workdir / "genotype.json")
    train_run.train(loop_config(), workdir)
    assert (workdir / "train" / "summary.json").read_bytes() == before


def _never_compiled(*_, **__):
    class Step:
        def compile(self, *_):
            raise AssertionError("a finished stage was compiled again")

    return Step()


def test_workdir_of_another_configuration_is_refused(tmp_path, finished, loop_config):
    shutil.copytree(finished, tmp_path / "run")
    with pytest.raises(UserError, match=r"search\.learning_rate: .* there, 0\.5 here"):
        main.run(loop_config(search__learning_rate=0.5), tmp_path / "run")


def _without_test(root):
    shutil.rmtree(root / "test")


def _small_test_scene(root):
    for kind in ("rain", "norain"):
        Image.new("RGB", (10, 40)).save(root / "test" / kind / "9.png")


@pytest.mark.parametrize(
    ("changes", "spoil", "message"),
    [
        ({"stage": "train", "train__genotype": "gone.json", "train__inherit": False}, None,
         r"gone\.json: cannot"),
        ({"search__method": "uniform", "search__budget": 1.0, "train__inherit": False,
          "space__candidates": ("none", "CBAM")}, None, "it lacks SE; add it"),
        ({"train__crop": 64}, None, "40x48 pixels are too small for patches of 64x64"),
        ({"train__accumulate": 3}, None, r"train\.scenes = 2 cannot be split over"),
        ({"train__scenes": 10**8}, None, "a batch of 100000000 scenes x .* takes .* GiB"),
        ({"search__crop": 8, "train__crop": 8, "search__validation_crop": 16}, "tiny", "validation "
         r"scene \d: 8x9 pixels are too small to be scored"),
        ({}, _without_test, "no test images to evaluate; add a test folder"),
        ({}, _small_test_scene, r"test scene 9: 40x10 pixels are too small to be scored"),
        ({"data__level": "wet"}, None, r"data\.level"),
        ({"data__appearance": "wet"}, None, r"data\.appearance"),
        ({"data__evaluation_level": "wet"}, None, r"data\.evaluation_level"),
        ({"data__validation_scenes": 0}, None, r"data\.validation_scenes = 0: give at least 1"),
        ({"stage": "train"}, None, r"genotype\.json is missing"),
        ({"stage": "evaluate", "train__genotype": "", "train__inherit": False}, None, "missing"),
    ],
)  # fmt: skip
def test_mistakes_of_later_stages_come_out_before_the_first(
    tmp_path, monkeypatch, pictures, make_pictures, loop_config, changes, spoil, message
):
    root = tmp_path / "data"
    shutil.copytree(pictures, root)
    if spoil == "tiny":
        shutil.rmtree(root / "train")
        make_pictures(root / "train", size=(8, 9))
    elif spoil:
        spoil(root)
    monkeypatch.setattr(main, "_RUN", {})  # no stage may start
    with pytest.raises(UserError, match=message):
        main.run(loop_config(data__root=str(root), **changes), tmp_path / "run")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("content", [b"", b"[{", b"3", b"[" * 100_000])
def test_damaged_provenance_is_set_aside(tmp_path, monkeypatch, loop_config, content):
    (tmp_path / "provenance.json").write_bytes(content)
    monkeypatch.setattr(main, "_RUN", {"search": lambda *_: None})
    main.run(loop_config(stage="search"), tmp_path)
    assert (tmp_path / "damaged-provenance.json").read_bytes() == content
    (start,) = json.loads((tmp_path / "provenance.json").read_text())
    assert start["stage"] == "search"


def test_workdir_that_is_a_file(tmp_path, loop_config):
    (tmp_path / "file").write_text("mine")
    with pytest.raises(UserError, match="cannot be written"):
        main.run(loop_config(), tmp_path / "file")
    assert (tmp_path / "file").read_text() == "mine"


def test_training_without_a_genotype(tmp_path, loop_config):
    with pytest.raises(UserError, match=r"genotype\.json is missing: run the search first"):
        main.run(loop_config(stage="train"), tmp_path)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "damaged or no genotype"),
        (None, "cannot read this genotype"),
        ("magic", "unknown choice 'magic'"),
        ("short", "columns, but its space has"),
    ],
)
def test_training_with_a_bad_genotype_file(tmp_path, finished, loop_config, content, message):
    file = tmp_path / "mine.json"
    fields = json.loads((finished / "genotype.json").read_text())
    if content == "magic":
        fields["attention"][0][0][0] = "magic"
        content = json.dumps(fields)
    elif content == "short":
        fields["columns"][0] = []
        content = json.dumps(fields)
    if content is not None:
        file.write_text(content)
    config = loop_config(stage="train", train__genotype=str(file), train__inherit=False)
    with pytest.raises(UserError, match=message) as error:
        main.run(config, tmp_path / "run")
    assert "mine.json" in str(error.value)


def test_training_starts_from_a_weights_file(tmp_path, finished, loop_config, caplog):
    """With a learning rate of 0 the weights and the genotype stay as they are."""
    file = finished / "weights.safetensors"
    config = loop_config(
        stage="train",
        train__inherit=False,
        train__weights=str(file),
        train__learning_rate=0.0,
        train__ema=0.0,
        train__steps=1,
    )
    main.run(config, tmp_path)
    before, genotype, _ = load_weights(file)
    after, same, origin = load_weights(tmp_path / "weights.safetensors")
    assert same == genotype == Genotype.load(finished / "genotype.json")
    jax.tree.map(np.testing.assert_array_equal, after["params"], before["params"])
    assert origin["step"] == "1"
    summary = json.loads((tmp_path / "train" / "summary.json").read_text())
    useless = summary["validation"]["psnr"] <= summary["input"]["psnr"]
    assert ("this network removes no rain" in caplog.text) == useless


def test_shipped_weights_have_names(tmp_path, monkeypatch, finished, loop_config):
    monkeypatch.setattr(main.pretrained, "FOLDER", finished)
    seen = []
    monkeypatch.setitem(main._RUN, "train", lambda config, *_: seen.append(config.train.weights))
    config = loop_config(stage="train", train__inherit=False, train__weights="weights")
    main.run(config, tmp_path)
    assert seen == [str(finished / "weights.safetensors")]
    assert config.train.weights == "weights"
    config.train.weights = "no_such"
    with pytest.raises(UserError, match="weights no_such: neither a file nor one of weights"):
        main.run(config, tmp_path / "other")
    assert not (tmp_path / "other").exists()


@pytest.mark.parametrize("stage", ["train", "all"])
def test_lost_weights_of_a_finished_training_are_written_again(
    tmp_path, finished, loop_config, stage
):
    """As after a run that was killed while it wrote them."""
    shutil.copytree(finished, tmp_path / "run")
    (tmp_path / "run" / "weights.safetensors").unlink()
    main.run(loop_config(stage=stage), tmp_path / "run")
    again, _, _ = load_weights(tmp_path / "run" / "weights.safetensors")
    first, _, _ = load_weights(finished / "weights.safetensors")
    jax.tree.map(np.testing.assert_array_equal, again, first)


def test_a_training_beyond_its_end_is_refused(tmp_path, finished, loop_config):
    """Its scores would count as those of fewer steps."""
    shutil.copytree(finished, tmp_path / "run")
    steps = loop_config().train.steps
    summary = (tmp_path / "run" / "train" / "summary.json").read_bytes()
    with pytest.raises(UserError, match=f"checkpoints is of step {steps}, train.steps is 1: give"):
        train_run.train(loop_config(train__steps=1), tmp_path / "run")
    assert (tmp_path / "run" / "train" / "summary.json").read_bytes() == summary


def test_weights_of_a_supernet_are_refused(tmp_path, loop_config, space):
    file = tmp_path / "supernet.safetensors"
    save_weights(file, init_variables(Network(space), 0), space, {})
    config = loop_config(stage="train", train__inherit=False, train__weights=str(file))
    with pytest.raises(UserError, match="weights of a supernet"):
        main.run(config, tmp_path / "run")


def _without_rain(root):
    shutil.rmtree(root / "train" / "rain")


def _without_clean(root):
    shutil.rmtree(root / "train" / "norain")


def _truncate(root):
    file = root / "train" / "rain" / "1.png"
    file.write_bytes(file.read_bytes()[:200])


def _empty(root):
    (root / "train" / "norain" / "2.png").write_bytes(b"")


def _no_image(root):
    (root / "train" / "norain" / "2.png").write_text("not a picture")


def _other_size(root):
    shutil.copy(root / "test" / "rain" / "0.png", root / "train" / "rain" / "3.png")


def _nothing(root):
    shutil.rmtree(root)
    root.mkdir()


@pytest.mark.parametrize(
    ("damage", "part"),
    [
        (_without_rain, ""),
        (_without_clean, "clean"),
        (_truncate, "1.png"),
        (_empty, "2.png"),
        (_no_image, "2.png"),
        (_other_size, "3.png"),
        (_nothing, "no images"),
    ],
)
def test_damaged_data_is_named(tmp_path, pictures, loop_config, damage, part):
    root = tmp_path / "data"
    shutil.copytree(pictures, root)
    damage(root)
    config = loop_config(
        stage="search", data__root=str(root), data__versions=1, data__real=1.0, data__synthetic=0.0
    )
    with pytest.raises(UserError) as error:
        main.run(config, tmp_path / "run")
    assert part in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("changes", "parts"),
    [
        ({"search__crop": 64}, ["pixels", "64x64", "crop"]),
        (
            {"data__versions": 4, "data__real": 1.0, "data__synthetic": 0.0},
            ["data.versions", "4 rainy versions requested"],
        ),
        ({"data__validation_scenes": 6}, ["data.validation_scenes"]),
    ],
)
def test_settings_that_do_not_fit_the_data(tmp_path, loop_config, changes, parts):
    with pytest.raises(UserError) as error:
        main.run(loop_config(stage="search", **changes), tmp_path)
    for part in parts:
        assert part in str(error.value)


def test_diverged_loss_stops_and_keeps_earlier_checkpoints(tmp_path, finished, loop_config):
    """The error names the step at which the loss became NaN; only finite states are saved."""
    shutil.copy(finished / "genotype.json", tmp_path)
    config = loop_config(
        stage="train",
        train__inherit=False,
        train__learning_rate=1e30,
        train__steps=30,
        train__checkpoint_every=1,
        log_every=100,
    )
    with pytest.raises(UserError, match=r"the loss diverged: \w+ is (nan|inf|-inf) at step \d+"):
        main.run(config, tmp_path)
    saved = [
        int(p.name) for p in (tmp_path / "train" / "checkpoints").iterdir() if p.name.isdigit()
    ]
    assert saved
    assert max(saved) < 30
    assert not (tmp_path / "train" / "summary.json").exists()
    assert os.path.exists(tmp_path / "config.json")


def test_full_disk_is_one_line(tmp_path, monkeypatch, loop_config):
    def full(*_):
        try:
            raise OSError(errno.ENOSPC, "No space left on device", "scores.json")
        except OSError as error:
            raise RuntimeError("the writer failed") from error

    monkeypatch.setitem(main._RUN, "search", full)
    with pytest.raises(UserError, match=r"^the disk at /.*: No space left on device: free some"):
        main.run(loop_config(stage="search"), tmp_path)
