"""Event files of a workdir, whole, resumed and damaged."""

import numpy as np
from clu import metric_writers
from conftest import NARROW

from manas_jax.models.network import Network
from manas_jax.models.variables import init_variables
from manas_jax.report import reader
from manas_jax.space import SearchSpace, random_genotype
from manas_jax.workdir.weights import save_weights


def write_events(folder, points):
    """Writes one event file; points are (step, {tag: scalar or array})."""
    writer = metric_writers.create_default_writer(str(folder), asynchronous=False)
    for step, values in points:
        arrays = {tag: value for tag, value in values.items() if np.ndim(value)}
        writer.write_scalars(step, {t: v for t, v in values.items() if t not in arrays})
        writer.write_summaries(step, arrays)
    writer.close()


def _values(curve):
    return dict(zip(curve[0].tolist(), curve[1].tolist(), strict=True))


def test_later_file_replaces_repeated_steps(tmp_path):
    write_events(
        tmp_path, [(s, {"loss": float(s), "table": np.full((2, 2), s)}) for s in (1, 2, 3, 5)]
    )
    # Resumed from step 2: repeats step 3, stops before step 5.
    write_events(tmp_path, [(3, {"loss": 30.0}), (4, {"loss": 40.0})])
    events = reader.read_events(tmp_path)
    assert _values(events["loss"]) == {1: 1.0, 2: 2.0, 3: 30.0, 4: 40.0}
    assert events["table"][0].tolist() == [1, 2, 3, 5]  # not in the later file
    assert events["table"][1].shape == (4, 2, 2)


def test_last_value_of_a_step_counts_and_truncated_files_are_read(tmp_path):
    write_events(tmp_path, [(1, {"loss": 1.0}), (1, {"loss": 7.0}), (2, {"loss": 2.0})])
    (file,) = tmp_path.iterdir()
    file.write_bytes(file.read_bytes()[:-5])
    assert _values(reader.read_events(tmp_path)["loss"]) == {1: 7.0}


def test_a_training_alone_has_the_genotype_of_its_weights(tmp_path):
    genotype = random_genotype(SearchSpace(**NARROW), 3)
    variables = init_variables(Network(genotype.space, genotype), 0)
    save_weights(tmp_path / "weights.safetensors", variables, genotype, {})
    assert reader.read(tmp_path).genotype == genotype
    searched = random_genotype(genotype.space, 4)
    searched.save(tmp_path / "genotype.json")
    assert reader.read(tmp_path).genotype == searched


def test_missing_folder_has_no_events(tmp_path):
    assert reader.read_events(tmp_path / "none") == {}
