"""Models sharded by FSDP2's `fully_shard`, over device meshes: gradients and teachers of one process with the whole batch."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import FullyShardedDataParallel, MixedPrecisionPolicy, fully_shard
from torch.func import functional_call

from otter_losses import EMATeacher, InfoNCELoss, OTTERLoss, SigLIPLoss, grad_cache
from otter_losses.losses.base import PairLoss
from tests.helpers.checks import relative
from tests.helpers.losses import MODULES
from tests.helpers.processes import run

pytestmark = pytest.mark.skipif(not hasattr(torch.cpu.Stream, "record_event"), reason="this torch has no fully_shard on a CPU")

WORLD = 4
LOCAL = 6
MESHES = {"one dimension": (4,), "two dimensions": (2, 2)}
"""Sharded over all ranks; sharded over pairs of ranks, which are replicas of one another."""
HOWS = ("before the forward", "after the forward", "grad_cache")
"""Where scale and bias are taken; or the batch in chunks."""
GROUP = "one dimension of two"
"""Sharded over the second dimension of a mesh, whose first holds unrelated runs."""
BOUNDS = {torch.float64: 1e-10, torch.float32: 1e-5, torch.bfloat16: 2e-2}
"""Each rank's share of a gradient in bfloat16 is rounded three times by 2^-8 of itself: at the features, at the weights, and
where texts' gradients are sent, which makes 1.2e-2; what the ranks add up partly cancels."""


class TwoTowers(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.image = nn.Sequential(nn.Linear(6, 9), nn.GELU(), nn.Linear(9, 8))
        self.text = nn.Linear(7, 8)
        self.logit_scale = nn.Parameter(torch.tensor([2.0]))
        self.logit_bias = nn.Parameter(torch.tensor([-1.0]))

    def forward(self, images: Tensor, texts: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        x, y = F.normalize(self.image(images), dim=1), F.normalize(self.text(texts), dim=1)
        return x, y, self.logit_scale.exp(), self.logit_bias


def shard(model: Any, mesh: DeviceMesh, **options: Any) -> None:
    fully_shard(model.image, mesh=mesh, **options)
    fully_shard(model, mesh=mesh, **options)


def make_batch(ranks: int, dtype: torch.dtype, seed: int = 1) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    names = {"images": 6, "texts": 7, "v": 5, "t": 5}
    batch = {name: torch.randn(ranks * LOCAL, width, generator=generator).to(dtype) for name, width in names.items()}
    return {name: F.normalize(each, dim=1) if name in "vt" else each for name, each in batch.items()}


def part_of(batch: dict[str, Tensor], rank: int) -> dict[str, Tensor]:
    return {name: each[rank * LOCAL : (rank + 1) * LOCAL] for name, each in batch.items()}


def teacher_of(batch: dict[str, Tensor]) -> dict[str, Any]:
    return {"dist_image_features": batch["v"], "dist_text_features": batch["t"]}


def full(tensor: Any) -> Tensor:
    whole: Tensor = tensor.full_tensor() if hasattr(tensor, "full_tensor") else tensor
    return whole.detach().clone()


def gradients_of(model: nn.Module) -> dict[str, Tensor]:
    return {name: full(parameter.grad) for name, parameter in model.named_parameters() if parameter.grad is not None}


def measure(model: Any, mesh: DeviceMesh, loss: PairLoss, batch: dict[str, Tensor], how: str = "") -> dict[str, Tensor]:
    shard(model, mesh)
    if how == "grad_cache":
        chunks = list(zip(torch.split(batch["images"], [4, 2]), torch.split(batch["texts"], [4, 2]), strict=True))
        value: Any = grad_cache(model, chunks, loss, **teacher_of(batch))
    else:
        sharded = model.logit_scale.exp(), 1 * model.logit_bias
        x, y, *numbers = model(batch["images"], batch["texts"])
        if how == "before the forward":
            numbers = list(sharded)
            assert all(type(number).__name__ == "DTensor" for number in numbers)
        elif how == "after the forward":
            numbers = [model.logit_scale.exp(), model.logit_bias]
        value = loss(x, y, *numbers, **teacher_of(batch))
        value.backward()
    return {"value": value.detach(), **gradients_of(model)}


def train(model: nn.Module, teacher: EMATeacher, loss: PairLoss, batch: dict[str, Tensor]) -> None:
    """Three steps in which the teacher teaches and follows."""
    optimizer = torch.optim.SGD(model.parameters(), lr=0.5)
    teacher.follow(model, optimizer)
    for _ in range(3):
        v, t, _, _ = teacher(batch["images"], batch["texts"])
        loss(*model(batch["images"], batch["texts"]), dist_image_features=v, dist_text_features=t).backward()
        optimizer.step()
        optimizer.zero_grad()


def message_of(act: Callable[..., Any], *args: Any) -> str:
    try:
        act(*args)
    except (TypeError, ValueError) as error:
        return str(error)
    return "no error"


def messages_of_flattened(use_orig_params: bool) -> list[str]:
    """What is said of FSDP1 somewhere in the model, and of a module inside it."""
    model = TwoTowers()
    teacher, inner = EMATeacher(model), EMATeacher(model.image)
    optimizer, tower, options = torch.optim.SGD(model.parameters(), lr=0.5), model.image, {"device_id": torch.device("cpu")}
    model.image = FullyShardedDataParallel(tower, use_orig_params=use_orig_params, **options)  # type: ignore[assignment, arg-type]
    acts = (EMATeacher, teacher.update, lambda model: teacher.follow(model, optimizer), lambda _: inner.update(tower))
    return [message_of(act, model) for act in (*acts, lambda model: EMATeacher(TwoTowers(), module=model))]


def average_and_cast(mesh: DeviceMesh) -> dict[str, Tensor]:
    """Of a sharded teacher, whose infinities the student has left, after a forward that leaves the shards aside."""
    model = TwoTowers()
    with torch.no_grad():
        model.text.weight[::2] = torch.inf
        model.image.get_parameter("0.weight")[0] = torch.finfo(torch.float32).min
        teacher = EMATeacher(model, decay=0.5, warmup=False)
        model.text.weight[::2] = 3.0
        model.text.weight[1::2] += 1.0
        model.image.get_parameter("0.weight")[0] = torch.finfo(torch.float32).max
    shard(model, mesh)
    shard(teacher.module, mesh)
    teacher.update(model)
    teacher(torch.ones(2, 6), torch.ones(2, 7))
    return {name: full(tensor) for name, tensor in teacher.double().state_dict().items()}


def work(rank: int, world: int) -> dict[Any, Any]:
    contract: dict[str, Any] = {"rank": rank, "world_size": world}
    results: dict[Any, Any] = {}
    meshes = {
        kind: init_device_mesh("cpu", shape, mesh_dim_names=("replicas", "shards")[-len(shape) :])
        for kind, shape in MESHES.items()
    }
    for dtype in (torch.float64, torch.float32):
        batch = part_of(make_batch(world, dtype), rank)
        for kind, mesh in meshes.items():
            for name, build in MODULES.items():
                results[kind, name, dtype] = measure(TwoTowers().to(dtype), mesh, build(**contract), batch)

    # A mesh in whose first dimension there are two runs that have nothing to do with one another.
    runs = init_device_mesh("cpu", (2, 2), mesh_dim_names=("runs", "data"))
    run, place, group = runs.get_local_rank("runs"), runs.get_local_rank("data"), runs.get_group("data")
    batch = part_of(make_batch(2, torch.float64, seed=run), place)
    for name, build in MODULES.items():
        loss = build(rank=place, world_size=2, group=group)
        results[GROUP, name] = measure(TwoTowers().double(), runs["data"], loss, batch)

    batch = part_of(make_batch(world, torch.float64), rank)
    for kind, mesh in meshes.items():
        for how in HOWS:
            results[kind, how] = measure(TwoTowers().double(), mesh, SigLIPLoss(**contract), batch, how)
        for sharded in (False, True):
            model = TwoTowers().double()
            teacher = EMATeacher(model)
            shard(model, mesh)
            if sharded:
                shard(teacher.module, mesh)
            train(model, teacher, OTTERLoss(**contract), batch)
            teacher(batch["images"], batch["texts"])
            state = teacher.state_dict()
            results[kind, "teacher", sharded] = {name: full(tensor) for name, tensor in state.items()}
            assert all(hasattr(tensor, "full_tensor") == sharded for name, tensor in state.items() if "module" in name)

    mesh = meshes["one dimension"]
    policy = MixedPrecisionPolicy(param_dtype=torch.bfloat16, reduce_dtype=torch.float32, output_dtype=torch.bfloat16)
    batch = part_of(make_batch(world, torch.float32), rank)
    for name, build in MODULES.items():
        model = TwoTowers()
        shard(model, mesh, mp_policy=policy)
        outputs = model(batch["images"], batch["texts"])
        assert all(output.dtype == torch.bfloat16 for output in outputs)
        value = build(**contract)(*outputs, **teacher_of(batch))
        value.backward()
        results[name, torch.bfloat16] = {"value": value.detach(), **gradients_of(model)}

    loss, x = InfoNCELoss(**contract), model.text.weight
    results["copied"] = message_of(EMATeacher, model)
    results["features"] = message_of(loss, x, x, 1.0)
    teacher = EMATeacher(TwoTowers())
    shard(teacher.module, mesh)
    results["whole student"] = message_of(teacher.update, TwoTowers())
    teacher = EMATeacher(TwoTowers().bfloat16())
    shard(teacher.module, mesh)
    student = TwoTowers().bfloat16()
    shard(student, mesh)
    results["half teacher"] = message_of(teacher.update, student)
    for use_orig_params in (False, True):
        results["flattened", use_orig_params] = messages_of_flattened(use_orig_params)
    results["infinities"] = average_and_cast(mesh)
    return results


@pytest.fixture(scope="module")
def ranks(tmp_path_factory: pytest.TempPathFactory) -> list[dict[Any, Any]]:
    return run(work, WORLD, tmp_path_factory.mktemp("fsdp"))


every_loss = pytest.mark.parametrize("name", MODULES)
every_mesh = pytest.mark.parametrize("kind", MESHES)


def alone(loss: PairLoss, batch: dict[str, Tensor], dtype: torch.dtype) -> dict[str, Tensor]:
    """Value and gradients of one process with the whole batch; for bfloat16 of parameters in float32, as FSDP2 keeps them."""
    model = TwoTowers().to(torch.promote_types(dtype, torch.float32))
    rounded = {name: parameter.to(dtype) for name, parameter in model.named_parameters()}
    outputs = functional_call(model, rounded, (batch["images"].to(dtype), batch["texts"].to(dtype)))
    value = loss(*outputs, **teacher_of(batch))
    value.backward()
    return {"value": value.detach(), **gradients_of(model)}


def check_same(actual: dict[str, Tensor], expected: dict[str, Tensor], bound: float) -> None:
    assert actual.keys() == expected.keys()
    for name, wanted in expected.items():
        assert actual[name].shape == wanted.shape
        assert relative(actual[name], wanted, floor=1e-3) <= bound, name
    assert all(float(wanted.norm()) > 1e-5 for name, wanted in expected.items() if name != "logit_bias")


@every_loss
@every_mesh
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_gradients_are_those_of_the_whole_batch(ranks: list[dict[Any, Any]], kind: str, name: str, dtype: torch.dtype) -> None:
    expected = alone(MODULES[name](), make_batch(WORLD, dtype), dtype)
    for results in ranks:
        check_same(results[kind, name, dtype], expected, BOUNDS[dtype])


@every_loss
def test_in_bfloat16_as_well(ranks: list[dict[Any, Any]], name: str) -> None:
    expected = alone(MODULES[name](), make_batch(WORLD, torch.float32), torch.bfloat16)
    for results in ranks:
        check_same(results[name, torch.bfloat16], expected, BOUNDS[torch.bfloat16])


@every_loss
def test_one_dimension_of_a_mesh_shares_its_own_batch(ranks: list[dict[Any, Any]], name: str) -> None:
    for rank, results in enumerate(ranks):
        expected = alone(MODULES[name](), make_batch(2, torch.float64, seed=rank // 2), torch.float64)
        check_same(results[GROUP, name], expected, BOUNDS[torch.float64])


@every_mesh
@pytest.mark.parametrize("how", HOWS)
def test_scale_and_bias_outside_the_forward_and_chunks(ranks: list[dict[Any, Any]], kind: str, how: str) -> None:
    expected = alone(SigLIPLoss(), make_batch(WORLD, torch.float64), torch.float64)
    for results in ranks:
        check_same(results[kind, how], expected, BOUNDS[torch.float64])


@every_mesh
@pytest.mark.parametrize("sharded", [False, True])
def test_a_teacher_follows_a_sharded_student(ranks: list[dict[Any, Any]], kind: str, sharded: bool) -> None:
    model = TwoTowers().double()
    teacher = EMATeacher(model)
    before = {name: tensor.clone() for name, tensor in teacher.state_dict().items()}
    train(model, teacher, OTTERLoss(), make_batch(WORLD, torch.float64))
    expected = teacher.state_dict()
    assert all(relative(tensor, before[name]) > 1e-4 for name, tensor in expected.items() if "bias" not in name)
    for results in ranks:
        actual = results[kind, "teacher", sharded]
        assert actual.keys() == expected.keys()
        for name, wanted in expected.items():
            assert relative(actual[name], wanted, floor=1e-3) <= BOUNDS[torch.float64], name


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("copied", "model is sharded by fully_shard, which cannot be copied; build the EMATeacher before fully_shard"),
        ("features", "image_features is a DTensor; need a plain tensor of this rank's pairs, as image_features.to_local()"),
        ("whole student", "teacher.module is sharded and logit_scale of the model is not; need both sharded"),
        ("half teacher", "teacher.module is sharded and logit_scale of dtype torch.bfloat16"),
    ],
)
def test_what_cannot_be_sharded_says_so(ranks: list[dict[Any, Any]], name: str, message: str) -> None:
    for results in ranks:
        assert message in results[name]


@pytest.mark.parametrize("use_orig_params", [False, True])
def test_fsdp1_is_refused_wherever_it_is(ranks: list[dict[Any, Any]], use_orig_params: bool) -> None:
    for results in ranks:
        for message in results["flattened", use_orig_params]:
            assert "holds a FullyShardedDataParallel" in message
            assert "call torch.distributed.fsdp.fully_shard" in message


def test_a_sharded_teacher_leaves_infinities_and_is_cast(ranks: list[dict[Any, Any]]) -> None:
    start = TwoTowers()
    for results in ranks:
        actual = results["infinities"]
        assert actual["average.module.text.weight"].dtype == torch.float64
        expected = start.text.weight.detach().double() + 0.5
        expected[::2] = 3.0
        torch.testing.assert_close(actual["average.module.text.weight"], expected, rtol=0, atol=1e-6)
        assert bool((actual["average.module.image.0.weight"][0] == 0).all())
        assert torch.equal(actual["average.module.image.2.weight"], start.image.get_parameter("2.weight").detach().double())
