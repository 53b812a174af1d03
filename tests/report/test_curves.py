"""Scalars in groups."""

import numpy as np

from manas_jax.report import curves


def _events(*tags, values=(1.0, 0.5)):
    return {tag: (np.array([10, 20]), np.array(values)) for tag in tags}


def _charts(*tags):
    return {
        chart.title: [name for _, name, _ in chart.legend]
        for chart in curves.stage_charts(_events(*tags))
    }


def test_losses_and_scores_are_grouped_and_what_is_no_loss_is_not_called_one():
    found = _charts(
        "learning_rate", "validation/ssim", "validation/psnr", "loss/psnr", "loss/mse", "loss/ssim",
        "loss/restoration", "loss/architecture_restoration", "loss/architecture_psnr",
        "loss/architecture_gradient_norm",
    )  # fmt: skip
    assert list(found) == [
        "Losses", "Losses on architecture batches", "PSNR, dB", "SSIM",
        "Learning rate", "Norm of the architecture’s gradient",
    ]  # fmt: skip
    assert found["Losses"] == ["restoration: the weighted sum", "MSE", "1 − SSIM"]
    assert found["Losses on architecture batches"] == ["restoration: the weighted sum"]
    assert found["PSNR, dB"] == ["architecture batches", "training batches", "validation scenes"]
    assert found["SSIM"] == ["validation scenes"]


def test_other_scalars_have_a_chart_each():
    assert _charts("a/new_psnr", "b") == {"A: new PSNR": [""], "B": [""]}


def test_entropies_are_drawn_once_and_shares_with_the_probabilities():
    kinds = ("columns", "attention")
    found = _charts(
        *(f"architecture/entropy_{kind}" for kind in kinds),
        *(f"loss/entropy_{kind}" for kind in kinds),
        "share/SE",
    )
    assert found == {"Entropy of the architecture": ["attention", "columns"]}


def test_arrays_are_no_curves():
    events = {"architecture/columns": (np.array([1]), np.ones((1, 3, 2)))}
    assert curves.stage_charts(events) == []


def test_values_that_are_not_finite_are_counted():
    (chart,) = curves.stage_charts(_events("loss/mse", values=(np.nan, 0.25)))
    assert chart.not_finite == 1
    assert chart.text == "Losses, steps 10 to 20: MSE from 0.25 to 0.25"
    assert [value for _, _, value in chart.legend] == ["0.25"]
    (chart,) = curves.stage_charts(_events("loss/mse", values=(np.nan, np.inf)))
    assert chart.text.endswith("no finite value")
    assert [value for _, _, value in chart.legend] == ["–"]
