"""grad_cache and open_clip's accumulation: chunks give the gradient of the whole batch, with the activations of one."""

import gc
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils.checkpoint import checkpoint

from otter_losses import InfoNCELoss, OTTERLoss, grad_cache
from otter_losses.losses.base import PairLoss
from tests.helpers.checks import relative
from tests.helpers.losses import MODULES
from tests.helpers.processes import run

SIZES = {"even": [4, 4, 4], "uneven": [5, 1, 6], "one chunk": [12]}
EXACT = 1e-10
every_loss = pytest.mark.parametrize("name", MODULES)


class TwoTowers(nn.Module):
    """The image tower drops out where asked to, and recomputes its activations."""

    def __init__(self, drop: float = 0.0, width: int = 8) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.image = nn.Sequential(nn.Linear(6, width), nn.Dropout(drop), nn.GELU(), nn.Linear(width, 8)).double()
        self.text = nn.Linear(7, 8).double()
        self.logit_scale = nn.Parameter(torch.tensor([2.0], dtype=torch.float64))
        self.logit_bias = nn.Parameter(torch.tensor([-1.0], dtype=torch.float64))

    def forward(self, images: Tensor, texts: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        x = F.normalize(checkpoint(self.image, images, use_reentrant=False), dim=1)
        return x, F.normalize(self.text(texts), dim=1), self.logit_scale.exp(), self.logit_bias


class OutputDict(TwoTowers):
    def forward(self, images: Tensor, texts: Tensor) -> Any:
        names = ("image_features", "text_features", "logit_scale", "logit_bias")
        return dict(zip(names, super().forward(images, texts), strict=True))


def make_batch(pairs: int = 12) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(1)
    images, texts, v, t = (torch.randn(pairs, width, generator=generator, dtype=torch.float64) for width in (6, 7, 9, 9))
    return {"images": images, "texts": texts, "v": F.normalize(v, dim=1), "t": F.normalize(t, dim=1)}


def cut(batch: dict[str, Tensor], sizes: list[int]) -> list[tuple[Tensor, Tensor]]:
    return list(zip(torch.split(batch["images"], sizes), torch.split(batch["texts"], sizes), strict=True))


def teacher_of(batch: dict[str, Tensor]) -> dict[str, Any]:
    return {"dist_image_features": batch["v"], "dist_text_features": batch["t"]}


def gradients_of(model: nn.Module) -> dict[str, Tensor]:
    found = {name.removeprefix("module."): parameter.grad for name, parameter in model.named_parameters()}
    return {name: gradient.clone() for name, gradient in found.items() if gradient is not None}


def at_once(loss: PairLoss, batch: dict[str, Tensor], call: dict[str, Any], **options: Any) -> tuple[Tensor, dict[str, Tensor]]:
    """Value and gradients of the whole batch in one pass."""
    model = TwoTowers(**options)
    value = loss(*model(batch["images"], batch["texts"]), **call)
    value.backward()
    return value.detach(), gradients_of(model)


def check_same(actual: dict[str, Tensor], expected: dict[str, Tensor], bound: float = EXACT) -> None:
    assert actual.keys() == expected.keys()
    for name, wanted in expected.items():
        assert relative(actual[name], wanted, floor=1e-4) <= bound, name
    assert all(float(wanted.norm()) > 1e-6 for name, wanted in expected.items() if name != "logit_bias")


# ---- one process ----


@every_loss
@pytest.mark.parametrize("sizes", SIZES.values(), ids=SIZES)
@pytest.mark.parametrize("taught", [False, True])
def test_gradients_are_those_of_the_batch_at_once(name: str, sizes: list[int], taught: bool) -> None:
    batch = make_batch()
    call = teacher_of(batch) if taught else {}
    value, expected = at_once(MODULES[name](), batch, call)
    model = TwoTowers()
    found = grad_cache(model, iter(cut(batch, sizes)), MODULES[name](), **call)
    assert isinstance(found, Tensor)
    assert not found.requires_grad
    assert relative(found, value) <= EXACT
    check_same(gradients_of(model), expected)


def test_outputs_by_keyword_and_parts() -> None:
    batch = make_batch()
    model = OutputDict()
    parts = grad_cache(model, cut(batch, [5, 7]), OTTERLoss(), **teacher_of(batch), output_dict=True)
    value, expected = at_once(OTTERLoss(), batch, teacher_of(batch))
    assert isinstance(parts, dict)
    assert sorted(parts) == ["contrastive_loss", "distill_loss"]
    assert not any(part.requires_grad for part in parts.values())
    assert relative(torch.stack(list(parts.values())).sum(), value) <= EXACT
    check_same(gradients_of(model), expected)


def test_dropout_repeats_and_leaves_the_random_numbers_where_one_pass_does() -> None:
    batch = make_batch()
    sizes = SIZES["uneven"]
    model = TwoTowers(drop=0.5)
    torch.manual_seed(3)
    outputs = [model(*chunk) for chunk in cut(batch, sizes)]
    after = torch.rand(4)
    x, y = (torch.cat(rows) for rows in zip(*(output[:2] for output in outputs), strict=True))
    value = OTTERLoss()(x, y, *outputs[0][2:])
    value.backward()
    expected = gradients_of(model)
    model.zero_grad()
    torch.manual_seed(3)
    found = grad_cache(model, cut(batch, sizes), OTTERLoss())
    assert torch.equal(torch.rand(4), after)
    assert relative(found, value) <= EXACT  # type: ignore[arg-type]
    check_same(gradients_of(model), expected)


def test_gradients_add_to_those_that_are_there() -> None:
    batch = make_batch()
    model = TwoTowers()
    for _ in range(2):
        grad_cache(model, cut(batch, [6, 6]), OTTERLoss())
    expected = at_once(OTTERLoss(), batch, {})[1]
    check_same(gradients_of(model), {name: 2 * gradient for name, gradient in expected.items()})


def test_a_frozen_tower_gets_none_and_the_other_its_own() -> None:
    batch = make_batch()
    model = TwoTowers()
    model.image.requires_grad_(False)
    grad_cache(model, cut(batch, [6, 6]), OTTERLoss())
    expected = at_once(OTTERLoss(), batch, {})[1]
    check_same(gradients_of(model), {name: each for name, each in expected.items() if not name.startswith("image")})


def test_numbers_and_none_are_shared_by_all_chunks() -> None:
    batch = make_batch()
    model = TwoTowers()
    grad_cache(lambda *chunk: (*model(*chunk)[:2], 7.0, None), cut(batch, [6, 6]), InfoNCELoss())
    x, y, _, _ = (plain := TwoTowers())(batch["images"], batch["texts"])
    InfoNCELoss()(x, y, 7.0).backward()
    check_same(gradients_of(model), gradients_of(plain))


def test_a_scaled_backward_scales_the_gradients() -> None:
    batch = make_batch()
    scaler: Any = torch.amp.GradScaler("cpu", init_scale=1024.0)
    model = TwoTowers()
    value = grad_cache(model, cut(batch, [6, 6]), OTTERLoss(), backward=lambda loss: scaler.scale(loss).backward())
    expected_value, expected = at_once(OTTERLoss(), batch, {})
    assert relative(value, expected_value) <= EXACT  # type: ignore[arg-type]
    check_same(gradients_of(model), {name: 1024 * gradient for name, gradient in expected.items()})


def test_under_autocast_every_parameter_learns() -> None:
    """Weights that the first pass converted without a graph must not be taken by the second. Gradients differ by rounding."""
    batch = {name: tensor.float() for name, tensor in make_batch().items()}
    together, apart = TwoTowers().float(), TwoTowers().float()
    with torch.autocast("cpu", torch.bfloat16):
        value = OTTERLoss()(*together(batch["images"], batch["texts"]))
        grad_cache(apart, cut(batch, [4, 8]), OTTERLoss())
    value.backward()
    check_same(gradients_of(apart), gradients_of(together), bound=2e-2)


class Saved:
    """What autograd keeps for a backward pass, in numbers; how many at once at most."""

    now = most = 0

    def __init__(self, tensor: Tensor) -> None:
        self.tensor = tensor
        Saved.now += tensor.numel()
        Saved.most = max(Saved.most, Saved.now)

    def __del__(self) -> None:
        Saved.now -= self.tensor.numel()


def most_saved(train: Callable[[Callable[..., Any]], Any]) -> int:
    """The most activations alive at once while `train` trains on an encoder."""
    tower, text = nn.Sequential(*(nn.Sequential(nn.Linear(6, 6), nn.Tanh()) for _ in range(8))), nn.Linear(7, 6)
    weights = {tensor.data_ptr() for tensor in tower.parameters()}
    gc.collect()
    Saved.now = Saved.most = 0

    def pack(tensor: Tensor) -> Any:
        return tensor if tensor.data_ptr() in weights else Saved(tensor)

    def unpack(kept: Any) -> Tensor:
        return kept.tensor if isinstance(kept, Saved) else kept

    def encode(images: Tensor, texts: Tensor) -> tuple[Tensor, Tensor, float]:
        with torch.autograd.graph.saved_tensors_hooks(pack, unpack):
            return F.normalize(tower(images), dim=1), F.normalize(text(texts), dim=1), 10.0

    train(encode)
    gc.collect()
    assert Saved.now == 0
    return Saved.most


def test_activations_are_those_of_one_chunk() -> None:
    batch = {name: tensor.float() for name, tensor in make_batch(64).items()}
    whole = most_saved(lambda encode: InfoNCELoss()(*encode(batch["images"], batch["texts"])).backward())
    eighth = most_saved(lambda encode: grad_cache(encode, cut(batch, [8] * 8), InfoNCELoss()))
    assert 0 < eighth <= whole / 8


# ---- bad input ----


def call(**other: Any) -> Any:
    batch = make_batch()
    model = TwoTowers()
    arguments = {"encode": model, "chunks": cut(batch, [6, 6]), "loss": InfoNCELoss(), **other}
    return grad_cache(**arguments)


def test_no_chunks_are_refused() -> None:
    with pytest.raises(ValueError, match=r"chunks is empty; need at least one, for example zip\(images\.split\(64\)"):
        call(chunks=[])


def test_a_chunk_that_is_no_tuple_is_refused() -> None:
    with pytest.raises(TypeError, match=r"chunks holds a Tensor; need a tuple of encode's arguments for each chunk"):
        call(chunks=torch.split(make_batch()["images"], 6))


def test_gradients_turned_off_are_refused() -> None:
    with torch.no_grad(), pytest.raises(RuntimeError, match="called where gradients are off"):
        call()


@pytest.mark.parametrize(
    ("outputs", "message"),
    [
        (lambda x: x, r"encode returned tensor.*, a Tensor; need a tuple in the order of the loss's arguments"),
        (lambda x: (), r"encode returned \(\), a tuple; need a tuple in the order of the loss's arguments"),
        (lambda x: (x, x, torch.ones(6)), r"output 2 of encode has shape \(6,\); need \(rows, D\), or one number"),
        (
            lambda x: (x, x[:, : 3 + int(x[0, 0] > 0)], 1.0),
            r"output 1 of encode has shape \(6, \d\) for chunk 1 and \(6, \d\) for",
        ),
    ],
)
def test_outputs_of_other_shapes_are_refused(outputs: Callable[[Tensor], Any], message: str) -> None:
    images = torch.cat([-torch.ones(6, 6), torch.ones(6, 6)])
    with pytest.raises((TypeError, ValueError), match=f"(?s){message}"):
        call(encode=outputs, chunks=[(chunk,) for chunk in torch.split(images, 6)])


def test_a_second_pass_with_other_rows_is_refused() -> None:
    model, calls = TwoTowers(), iter(range(4))

    def encode(*chunk: Tensor) -> tuple[Tensor, ...]:
        x, y, scale, bias = model(*chunk)
        return (x, y, scale, bias) if next(calls) < 3 else (x[1:], y, scale, bias)

    with pytest.raises(ValueError, match=r"output 0 of encode for chunk 1 has shape \(5, 8\) in the second pass and \(6, 8\)"):
        call(encode=encode)


def test_a_second_pass_with_other_features_is_refused() -> None:
    model, generator = TwoTowers(), torch.Generator().manual_seed(0)

    def encode(images: Tensor, texts: Tensor) -> tuple[Tensor, ...]:
        noise = torch.randn(images.shape, generator=generator, dtype=images.dtype)
        return model(images + noise, texts)  # type: ignore[no-any-return]

    with pytest.raises(ValueError, match=r"output 0 of encode for chunk 0 is off by \d+% in the second pass"):
        call(encode=encode)


def test_a_model_that_does_not_train_is_refused() -> None:
    with pytest.raises(RuntimeError, match="encode returned nothing that requires a gradient"):
        call(encode=TwoTowers().requires_grad_(False))


def test_a_backward_that_does_nothing_is_refused() -> None:
    with pytest.raises(RuntimeError, match="backward left no gradient in the features"):
        call(backward=lambda loss: loss)


@pytest.mark.parametrize("parts", [False, True])
@pytest.mark.parametrize("where", ["loss", "call"])
def test_a_loss_a_pair_needs_a_backward_of_ones_own(where: str, parts: bool) -> None:
    named: dict[str, Any] = {"reduction": "none"}
    loss, asked = (OTTERLoss(**named), {}) if where == "loss" else (OTTERLoss(), named)
    with pytest.raises(
        ValueError, match=r"loss returned shape \(12,\); .*backward=lambda losses: losses\.mean\(\)\.backward\(\)"
    ):
        call(loss=loss, output_dict=parts, **asked)
    batch, model, weights = make_batch(), TwoTowers(), torch.linspace(0, 2, 12, dtype=torch.float64)
    grad_cache(model, cut(batch, [5, 7]), loss, backward=lambda losses: (weights * losses).mean().backward(), **asked)  # type: ignore[no-untyped-call]
    plain = TwoTowers()
    (weights * loss(*plain(batch["images"], batch["texts"]), **asked)).mean().backward()
    check_same(gradients_of(model), gradients_of(plain))


def test_a_loss_that_is_none_is_refused() -> None:
    with pytest.raises(TypeError, match="loss returned a float; need a tensor"):
        call(loss=lambda *features: 1.0)


# ---- open_clip's accumulation ----


def accumulate(model: nn.Module, chunks: list[tuple[Tensor, Tensor]], loss: PairLoss, call: dict[str, Any]) -> list[Tensor]:
    """open_clip's loop with accum_freq: the loss for each chunk, from features of which only that chunk's have a gradient."""
    with torch.no_grad():
        cached = [model(*chunk)[:2] for chunk in chunks]
    values = []
    for index, chunk in enumerate(chunks):
        x, y, scale, bias = model(*chunk)
        live = [*cached[:index], (x, y), *cached[index + 1 :]]
        value = loss(*(torch.cat(rows) for rows in zip(*live, strict=True)), scale, bias, **call)
        value.backward()
        values.append(value.detach())
    return values


def check_accumulated(actual: dict[str, Tensor], expected: dict[str, Tensor], times: int) -> None:
    """The scale and the bias have part in the loss of every chunk, in open_clip's own loss as well."""
    check_same(actual, {name: gradient * (times if "logit" in name else 1) for name, gradient in expected.items()})


@every_loss
@pytest.mark.parametrize("taught", [False, True])
def test_cached_features_accumulate_to_the_gradient_of_the_batch(name: str, taught: bool) -> None:
    batch = make_batch()
    call = teacher_of(batch) if taught else {}
    value, expected = at_once(MODULES[name](), batch, call)
    model = TwoTowers()
    values = accumulate(model, cut(batch, SIZES["uneven"]), MODULES[name](), call)
    assert all(relative(each, value) <= EXACT for each in values)
    check_accumulated(gradients_of(model), expected, 3)


# ---- processes ----

COUNTS = {"even": [[3, 3], [3, 3]], "uneven": [[4, 1], [2, 5]]}
"""The sizes of the chunks of every rank."""
MODES = ("grad_cache", "grad_cache, averaged by chunk", "accumulation")


def average(state: list[int], bucket: dist.GradBucket) -> torch.futures.Future[Tensor]:  # type: ignore[name-defined]
    """DDP's own reduction, counted."""
    state.append(1)
    future: Any = dist.all_reduce(bucket.buffer(), async_op=True).get_future()
    return future.then(lambda done: done.value()[0] / dist.get_world_size())  # type: ignore[no-any-return]


def work(rank: int, world: int) -> dict[Any, Any]:
    results: dict[Any, Any] = {}
    for sharing, counts in COUNTS.items():
        parts = {name: torch.split(each, [sum(sizes) for sizes in counts])[rank] for name, each in make_batch().items()}
        chunks = cut(parts, counts[rank])
        for name, build in MODULES.items():
            for mode in MODES:
                model = DistributedDataParallel(TwoTowers())
                loss = build(rank=rank, world_size=world)
                buckets: list[int] = []
                model.register_comm_hook(buckets, average)
                if mode == "grad_cache":
                    value = grad_cache(model, chunks, loss, **teacher_of(parts))
                elif mode == "accumulation":
                    value = accumulate(model, chunks, loss, teacher_of(parts))[0]
                else:
                    value = grad_cache(lambda *chunk, model=model: model(*chunk), chunks, loss, **teacher_of(parts))
                results[sharing, name, mode] = {"value": value, **gradients_of(model), "reductions": len(buckets)}
    return results


@pytest.fixture(scope="module")
def ranks(tmp_path_factory: pytest.TempPathFactory) -> list[dict[Any, Any]]:
    return run(work, 2, tmp_path_factory.mktemp("grad_cache"))


@every_loss
@pytest.mark.parametrize("sharing", COUNTS)
@pytest.mark.parametrize("mode", MODES)
def test_two_processes_give_the_gradient_of_the_whole_batch(
    ranks: list[dict[Any, Any]], name: str, sharing: str, mode: str
) -> None:
    batch = make_batch()
    value, expected = at_once(MODULES[name](), batch, teacher_of(batch))
    for results in ranks:
        actual = dict(results[sharing, name, mode])
        assert relative(actual.pop("value"), value) <= EXACT
        assert actual.pop("reductions") == (1 if mode == "grad_cache" else 2)
        check_accumulated(actual, expected, 2 if mode == "accumulation" else 1)
