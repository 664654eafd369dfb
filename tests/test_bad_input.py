"""What is wrong comes back as an error that names the argument, what came and what is needed; never as a silent NaN."""

import math
import os
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from otter_losses import (
    DistillationLoss,
    EMATeacher,
    InfoNCELoss,
    LabelSmoothingLoss,
    OTTERLoss,
    set_debug,
    sinkhorn_knopp,
)
from otter_losses.functional import otter_targets
from otter_losses.losses.base import PairLoss
from otter_losses.losses.registry import LOSSES
from tests.helpers.batches import make_batch
from tests.helpers.paths import ROOT

every_loss = pytest.mark.parametrize("build", [row.module for row in LOSSES.values()])
every_taught_loss = pytest.mark.parametrize("build", [row.module for row in LOSSES.values() if row.uses_teacher])


def rows(n: int = 4, d: int = 3) -> Tensor:
    return make_batch(n, d).x.detach().float()


def spoiled(value: float) -> Tensor:
    features = rows()
    features[2, 1] = value
    return features


# ---- features ----


@every_loss
@pytest.mark.parametrize("position", [0, 1])
@pytest.mark.parametrize(
    ("bad", "error", "message"),
    [
        (torch.zeros(3), ValueError, r"{name} has shape \(3,\); need \(N, D\)"),
        (torch.zeros(2, 3, 4), ValueError, r"{name} has shape \(2, 3, 4\); need \(N, D\)"),
        (torch.zeros(4, 3, dtype=torch.int64), TypeError, r"{name} has dtype torch.int64; .*Convert: {name}\.float\(\)"),
        (torch.zeros(4, 3, dtype=torch.bool), TypeError, r"{name} has dtype torch.bool"),
        (torch.zeros(4, 3, dtype=torch.complex64), TypeError, r"{name} has dtype torch.complex64"),
        ([[1.0, 0.0, 0.0]], TypeError, r"{name} is a list; need a torch\.Tensor"),
        (spoiled(math.nan), ValueError, r"{name} holds nan at \[2, 1\]; need finite numbers"),
        (spoiled(math.inf), ValueError, r"{name} holds inf at \[2, 1\]"),
        (spoiled(-math.inf), ValueError, r"{name} holds -inf at \[2, 1\]"),
        (torch.zeros(4, 5), ValueError, r"image_features has shape .* and text_features .*; need the same \(N, D\)"),
        (torch.zeros(5, 3), ValueError, r"image_features has shape .* and text_features .*; need the same \(N, D\)"),
        (torch.zeros(4, 3, device="meta"), ValueError, r"image_features is on .* and text_features on .*; need one device"),
    ],
)
def test_features_that_cannot_be_used(
    build: type[PairLoss], position: int, bad: Any, error: type[Exception], message: str
) -> None:
    features = [rows(), rows()]
    features[position] = bad
    name = ("image_features", "text_features")[position]
    with pytest.raises(error, match=message.replace("{name}", name)):
        build()(*features, 14.3)


@every_loss
def test_an_empty_batch(build: type[PairLoss]) -> None:
    with pytest.raises(ValueError, match=r"image_features and text_features are empty, .*need at least one pair"):
        build()(torch.zeros(0, 3), torch.zeros(0, 3), 14.3)


@every_loss
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_nan_in_half_precision(build: type[PairLoss], dtype: torch.dtype) -> None:
    with pytest.raises(ValueError, match=r"text_features holds nan at \[2, 1\]"):
        build()(rows().to(dtype), spoiled(math.nan).to(dtype), 14.3)


def test_infinities_that_cancel_are_found() -> None:
    features = rows()
    features[0, 0], features[1, 1] = math.inf, -math.inf
    with pytest.raises(ValueError, match=r"image_features holds inf at \[0, 0\]"):
        InfoNCELoss()(features, rows(), 14.3)


def test_large_finite_half_precision_features_are_not_called_infinite() -> None:
    features = torch.full((64, 64), 60000.0, dtype=torch.float16)
    value = InfoNCELoss()(features, features, 1e-9)
    assert float(value) == pytest.approx(math.log(64), rel=1e-3)


# ---- debug mode ----


@every_loss
@pytest.mark.parametrize("position", [0, 1])
def test_unnormalised_features_in_debug_mode(build: type[PairLoss], position: int) -> None:
    features = [rows(), rows()]
    features[position] = 10 * features[position]
    value = build()(*features, 14.3)
    assert bool(torch.isfinite(value))
    set_debug(True)
    name = ("image_features", "text_features")[position]
    with pytest.raises(ValueError, match=rf"{name} has row norms from 10 to 10; need 1\. Use torch\.nn\.functional\.normalize"):
        build()(*features, 14.3)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16])
def test_normalised_features_of_any_precision_pass_in_debug_mode(dtype: torch.dtype) -> None:
    batch = make_batch(41, 64).to(dtype)
    set_debug(True)
    assert bool(torch.isfinite(OTTERLoss()(batch.x, batch.y, batch.scale, **batch.teacher())))


def test_unnormalised_teacher_in_debug_mode() -> None:
    set_debug(True)
    with pytest.raises(ValueError, match="dist_text_features has row norms"):
        OTTERLoss()(rows(), rows(), 14.3, dist_image_features=rows(), dist_text_features=2 * rows())


def test_environment_turns_debug_mode_on() -> None:
    script = "import torch, otter_losses; x = 10 * torch.eye(4); otter_losses.InfoNCELoss()(x, x, 1.0)"
    codes = {}
    for flag in ("0", "1"):
        environment = {**os.environ, "OTTER_LOSSES_DEBUG": flag}
        process = subprocess.run([sys.executable, "-c", script], cwd=ROOT, env=environment, capture_output=True, text=True)
        codes[flag] = process.returncode, "need 1. Use torch.nn.functional.normalize" in process.stderr
    assert codes == {"0": (0, False), "1": (1, True)}


# ---- scalars ----


@every_loss
@pytest.mark.parametrize(
    ("scale", "error", "message"),
    [
        (math.nan, ValueError, "logit_scale is nan; need a finite number"),
        (math.inf, ValueError, "logit_scale is inf; need a finite number"),
        (torch.tensor(math.nan), ValueError, "logit_scale is nan; need finite numbers"),
        (torch.tensor([math.inf]), ValueError, "logit_scale is inf; need finite numbers"),
        (torch.ones(2), ValueError, r"logit_scale has shape \(2,\); need one number: a float, a 0-D tensor or shape \[1\]"),
        ("14", TypeError, "logit_scale is a str; need a number"),
        (None, TypeError, "logit_scale is a NoneType; need a number"),
        (True, TypeError, "logit_scale is a bool; need a number"),
    ],
)
def test_scales_that_cannot_be_used(build: type[PairLoss], scale: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        build()(rows(), rows(), scale)


@every_loss
@pytest.mark.parametrize("bias", [torch.zeros(2), torch.tensor(math.nan)])
def test_biases_that_cannot_be_used(build: type[PairLoss], bias: Tensor) -> None:
    with pytest.raises(ValueError, match=r"^logit_bias (has shape|is nan)"):
        build()(rows(), rows(), 14.3, bias)


@pytest.mark.parametrize("bad", [math.nan, torch.zeros(3)])
def test_second_scales_that_cannot_be_used(bad: Any) -> None:
    with pytest.raises(ValueError, match="distill_logit_scale"):
        OTTERLoss()(rows(), rows(), 14.3, distill_logit_scale=bad)
    with pytest.raises(ValueError, match="dist_logit_scale"):
        DistillationLoss()(rows(), rows(), 14.3, dist_logit_scale=bad)


# ---- alpha ----


@every_taught_loss
@pytest.mark.parametrize(
    ("alpha", "error", "message"),
    [
        (-0.1, ValueError, r"alpha is -0\.1; need a finite number of at least 0 and at most 1"),
        (1.1, ValueError, r"alpha is 1\.1; need"),
        (math.nan, ValueError, "alpha is nan; need"),
        ("0.5", TypeError, "alpha is a str; need a number"),
    ],
)
def test_alphas_that_cannot_be_used(build: type[PairLoss], alpha: Any, error: type[Exception], message: str) -> None:
    make: Callable[..., PairLoss] = build
    with pytest.raises(error, match=message):
        make(alpha=alpha)
    with pytest.raises(error, match=message):
        make()(rows(), rows(), 14.3, alpha=alpha)


@every_taught_loss
@pytest.mark.parametrize(
    ("alpha", "error", "message"),
    [
        (torch.tensor([0.5, 0.5, 0.5]), ValueError, r"alpha has shape \(3,\); need a number or shape \(4,\)"),
        (torch.full((4, 1), 0.5), ValueError, r"alpha has shape \(4, 1\); need a number or shape \(4,\)"),
        (torch.tensor([0.5, -0.5, 0.5, 0.5]), ValueError, r"alpha has values from -0\.5 to 0\.5; need numbers in \[0, 1\]"),
        (torch.tensor([0.5, 1.5, 0.5, 0.5]), ValueError, r"alpha has values from 0\.5 to 1\.5"),
        (torch.tensor([0.5, math.nan, 0.5, 0.5]), ValueError, "alpha has values"),
        (torch.tensor([1, 0, 1, 1]), TypeError, r"alpha has dtype torch\.int64; .*Convert: alpha\.float\(\)"),
        (torch.full((4,), 0.5, requires_grad=True), ValueError, r"alpha requires a gradient.*Pass alpha\.detach\(\)"),
        (torch.full((4,), 0.5, device="meta"), ValueError, "alpha is on meta and image_features on cpu; need one device"),
    ],
)
def test_alphas_per_pair_that_cannot_be_used(build: type[PairLoss], alpha: Tensor, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        build()(rows(), rows(), 14.3, alpha=alpha)


# ---- the teacher ----


@every_taught_loss
@pytest.mark.parametrize(
    ("image", "text", "message"),
    [
        (rows(), None, "dist_text_features is None but its counterpart is not; a teacher needs both"),
        (None, rows(), "dist_image_features is None but its counterpart is not; a teacher needs both"),
        (rows(5), rows(5), "dist_image_features has 5 rows and image_features 4; need the teacher's features of the same pairs"),
        (rows(4, 3), rows(4, 5), "dist_image_features has shape .* and dist_text_features .*; need the same"),
        (spoiled(math.nan), rows(), r"dist_image_features holds nan at \[2, 1\]"),
        (rows(), spoiled(math.inf), r"dist_text_features holds inf at \[2, 1\]"),
        (rows().to("meta"), rows().to("meta"), "dist_image_features is on meta and image_features on cpu; need one device"),
    ],
)
def test_teachers_that_cannot_be_used(build: type[PairLoss], image: Tensor | None, text: Tensor | None, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        build()(rows(), rows(), 14.3, dist_image_features=image, dist_text_features=text)


# ---- options ----


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"epsilon": 0.0}, ValueError, "epsilon is 0.0; need a finite number above 0"),
        ({"epsilon": -0.1}, ValueError, "epsilon is -0.1; need a finite number above 0"),
        ({"epsilon": math.nan}, ValueError, "epsilon is nan; need"),
        ({"epsilon": math.inf}, ValueError, "epsilon is inf; need"),
        ({"epsilon": "0.1"}, TypeError, "epsilon is a str; need a number"),
        ({"iterations": 0}, ValueError, "iterations is 0; need an int of at least 1"),
        ({"iterations": -3}, ValueError, "iterations is -3; need an int of at least 1"),
        ({"iterations": 2.5}, TypeError, "iterations is 2.5, a float; need an int"),
        ({"iterations": True}, TypeError, "iterations is True, a bool; need an int"),
    ],
)
def test_solver_options_that_cannot_be_used(options: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        OTTERLoss(**options)
    with pytest.raises(error, match=message):
        otter_targets(rows(), rows(), **options)
    with pytest.raises(error, match=message):
        sinkhorn_knopp(torch.zeros(2, 2), **options)


@pytest.mark.parametrize("build", [OTTERLoss, DistillationLoss])
@pytest.mark.parametrize("name", ["gamma_image", "gamma_text"])
@pytest.mark.parametrize("value", [-1.0, math.nan, math.inf])
def test_gammas_that_cannot_be_used(build: type[PairLoss], name: str, value: float) -> None:
    options: dict[str, Any] = {name: value}
    with pytest.raises(ValueError, match=f"{name} is {value}; need a finite number of at least 0"):
        build(**options)


def test_temperatures_that_cannot_be_used() -> None:
    with pytest.raises(ValueError, match="epsilon is 0; need a finite number above 0"):
        DistillationLoss(epsilon=0)


def test_smoothings_that_cannot_be_used() -> None:
    for smoothing in (-0.1, 1.1, math.nan):
        with pytest.raises(ValueError, match=r"smoothing is .*; need a finite number of at least 0 and at most 1"):
            LabelSmoothingLoss(smoothing)
    with pytest.raises(ValueError, match="convention is 'keras'; need 'paper' or 'torch'"):
        LabelSmoothingLoss(0.1, "keras")  # type: ignore[arg-type]


@every_loss
def test_backends_that_are_not_there(build: type[PairLoss]) -> None:
    with pytest.raises(ValueError, match="backend is 'numpy'; need one of 'auto', 'torch', 'triton', 'cuda'"):
        build(backend="numpy")
    assert bool(torch.isfinite(build(backend="torch")(rows(), rows(), 14.3)))


@every_loss
@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"max_memory": -1}, ValueError, "max_memory is -1; need an int of at least 0"),
        ({"max_memory": 0.5}, TypeError, "max_memory is 0.5, a float; need an int"),
        ({"world_size": 0}, ValueError, "world_size is 0; need an int of at least 1"),
        ({"rank": -1}, ValueError, "rank is -1; need an int of at least 0"),
        ({"rank": 2, "world_size": 2}, ValueError, "rank is 2 and world_size 2; need a rank below world_size"),
        ({"use_horovod": True}, ValueError, "use_horovod is True; .*Launch with torchrun"),
    ],
)
def test_contract_options_that_cannot_be_used(
    build: type[PairLoss], options: dict[str, Any], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        build(**options)


# ---- distribution ----


@every_loss
def test_several_ranks_without_a_process_group(build: type[PairLoss]) -> None:
    with pytest.raises(RuntimeError, match=r"world_size is 2 but torch\.distributed is not initialised; .*init_process_group"):
        build(rank=0, world_size=2)(rows(), rows(), 14.3)


def test_unknown_arguments_are_named() -> None:
    with pytest.raises(TypeError, match="temperature"):
        OTTERLoss(temperature=3)  # type: ignore[call-arg]
    with pytest.raises(TypeError, match="temperature"):
        OTTERLoss()(rows(), rows(), 14.3, temperature=3)


def test_a_teacher_needs_a_model() -> None:
    with pytest.raises(TypeError, match=r"model is a Tensor; need a torch\.nn\.Module"):
        EMATeacher(rows())  # type: ignore[arg-type]


@every_loss
def test_magnitudes_that_would_overflow(build: type[PairLoss]) -> None:
    with pytest.raises(ValueError, match=r"image_features has values from .*; need magnitudes of at most 1e\+15"):
        build()(1e20 * rows(), rows(), 14.3)
    with pytest.raises(ValueError, match="logit_scale is 1e\\+38; need a finite number"):
        build()(rows(), rows(), 1e38)


@every_loss
def test_features_without_width(build: type[PairLoss]) -> None:
    with pytest.raises(ValueError, match=r"are empty, shape \(4, 0\); need at least one pair and one feature"):
        build()(torch.zeros(4, 0), torch.zeros(4, 0), 14.3)


@every_loss
@pytest.mark.parametrize("bias", ["a", math.nan])
def test_biases_that_are_no_numbers(build: type[PairLoss], bias: Any) -> None:
    with pytest.raises((TypeError, ValueError), match="logit_bias is"):
        build()(rows(), rows(), 14.3, bias)


@every_loss
def test_complex_scales(build: type[PairLoss]) -> None:
    with pytest.raises(TypeError, match=r"logit_scale has dtype torch\.complex64; need a real number"):
        build()(rows(), rows(), torch.tensor(14 + 1j))


def test_numbers_of_numpy_are_numbers() -> None:
    plain = OTTERLoss()(rows(), rows(), 14.0)
    assert torch.equal(OTTERLoss(alpha=np.float32(0.5))(rows(), rows(), np.float32(14)), plain)


@every_loss
def test_a_teacher_given_one_place_early_is_told_where_it_landed(build: type[PairLoss]) -> None:
    with pytest.raises(ValueError, match=r"logit_bias has shape \(4, 3\); need one number"):
        build()(rows(), rows(), 14.3, rows(), rows())
