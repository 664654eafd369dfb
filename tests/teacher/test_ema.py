"""EMATeacher: the average computed by hand, and what wrapping, saving and training must not change."""

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from lightning.fabric import Fabric
from torch import Tensor, nn
from torch.distributed.fsdp import FullyShardedDataParallel
from torch.nn.parallel import DistributedDataParallel

from otter_losses import EMATeacher
from tests.helpers.checks import relative


class Tower(nn.Module):
    """A parameter, a norm with floating and integer buffers, and dropout."""

    def __init__(self, width: int = 3) -> None:
        super().__init__()
        self.linear = nn.Linear(4, width)
        self.norm = nn.BatchNorm1d(width)
        self.drop = nn.Dropout(0.5)

    def forward(self, x: Tensor) -> Tensor:
        output: Tensor = self.drop(self.norm(self.linear(x)))
        return output

    def project(self, x: Tensor) -> Tensor:
        output: Tensor = self.linear(x)
        return output


def make_tower(seed: int = 0, width: int = 3) -> Tower:
    torch.manual_seed(seed)
    return Tower(width)


def change(model: nn.Module, step: int) -> None:
    """Give the model the numbers of this step."""
    generator = torch.Generator().manual_seed(100 + step)
    with torch.no_grad():
        for tensor in (*model.parameters(), *model.buffers()):
            if tensor.is_floating_point():
                tensor.copy_(torch.randn(tensor.shape, generator=generator))
            else:
                tensor.fill_(step)


def floating(model: nn.Module) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in model.state_dict().items() if tensor.is_floating_point()}


@pytest.mark.parametrize("decay", [0.0, 0.3, 0.999])
@pytest.mark.parametrize("warmup", [False, True])
def test_average_is_the_formula_step_by_step(decay: float, warmup: bool) -> None:
    model = make_tower()
    teacher = EMATeacher(model, decay, warmup)
    expected = {name: tensor.double() for name, tensor in floating(model).items()}
    for n in range(1, 31):
        change(model, n)
        teacher.update(model)
        d = min(decay, (1 + n) / (10 + n)) if warmup else decay
        expected = {name: d * old + (1 - d) * model.state_dict()[name].double() for name, old in expected.items()}
        for name, value in floating(teacher.module).items():
            assert relative(value, expected[name]) <= 1e-5, (name, n)
    assert teacher.updates == 30


def test_slow_decay_is_exact_to_single_precision() -> None:
    """1 - 0.9999 must not be lost to rounding."""
    model = nn.Linear(2, 1, bias=False)
    teacher = EMATeacher(model, decay=0.9999, warmup=False)
    with torch.no_grad():
        model.weight.add_(1.0)
    before = teacher.module.get_parameter("weight").double().clone()
    teacher.update(model)
    moved = teacher.module.get_parameter("weight").double() - before
    torch.testing.assert_close(moved, torch.full_like(moved, 1e-4), rtol=2e-3, atol=0)


def test_integer_buffers_are_copied() -> None:
    model = make_tower()
    teacher = EMATeacher(model)
    for n in (1, 2, 7):
        change(model, n)
        teacher.update(model)
        count = teacher.module.get_buffer("norm.num_batches_tracked")
        assert count.dtype == torch.int64
        assert int(count) == n


def test_teacher_is_a_copy() -> None:
    model = make_tower()
    teacher = EMATeacher(model)
    before = floating(teacher.module)
    assert all(torch.equal(value, floating(model)[name]) for name, value in before.items())
    change(model, 1)
    assert all(torch.equal(value, before[name]) for name, value in floating(teacher.module).items())
    assert teacher.updates == 0


def test_updating_leaves_the_model_alone() -> None:
    model = make_tower().train()
    teacher = EMATeacher(model)
    change(model, 1)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    teacher.update(model)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert model.training
    assert all(parameter.requires_grad for parameter in model.parameters())


def test_stays_in_eval_mode_inside_a_training_parent() -> None:
    teacher = EMATeacher(make_tower().train())
    parent = nn.ModuleDict({"teacher": teacher, "student": make_tower()}).train()
    assert parent["student"].training
    assert not any(module.training for module in teacher.modules())
    x = torch.randn(8, 4)
    statistics = teacher.module.get_buffer("norm.running_mean").clone()
    assert torch.equal(teacher(x), teacher(x))
    assert torch.equal(teacher.module.get_buffer("norm.running_mean"), statistics)


def test_computes_as_the_averaged_model_does_and_without_gradient() -> None:
    model = make_tower()
    teacher = EMATeacher(model)
    x = torch.randn(8, 4, requires_grad=True)
    output = teacher(x)
    assert not output.requires_grad
    assert not any(parameter.requires_grad for parameter in teacher.parameters())
    assert torch.equal(output, model.eval()(x))
    assert isinstance(teacher.module, Tower)
    assert torch.equal(teacher.module.project(x), model.project(x))


def test_saved_and_loaded_it_continues_the_same() -> None:
    model = make_tower()
    straight = EMATeacher(model)
    for n in range(1, 6):
        change(model, n)
        straight.update(model)
    resumed = EMATeacher(make_tower(seed=9))
    resumed.load_state_dict(straight.state_dict())
    assert resumed.updates == 5
    for n in range(6, 12):
        change(model, n)
        straight.update(model)
        resumed.update(model)
    for (name, value), (other, wanted) in zip(resumed.state_dict().items(), straight.state_dict().items(), strict=True):
        assert name == other
        assert torch.equal(value, wanted)


def test_state_survives_a_file(tmp_path: Path) -> None:
    model = make_tower()
    teacher = EMATeacher(model)
    change(model, 1)
    teacher.update(model)
    torch.save(teacher.state_dict(), tmp_path / "teacher.pt")
    loaded = EMATeacher(make_tower(seed=9))
    loaded.load_state_dict(torch.load(tmp_path / "teacher.pt", weights_only=True))
    assert loaded.updates == 1
    assert torch.equal(loaded.module.get_parameter("linear.weight"), teacher.module.get_parameter("linear.weight"))


def test_follows_a_compiled_model() -> None:
    model = make_tower()
    compiled: Any = torch.compile(model, backend="aot_eager")
    teachers = [EMATeacher(model), EMATeacher(compiled)]
    change(model, 1)
    for teacher, source in ((teachers[0], compiled), (teachers[1], model)):
        teacher.update(source)
    first, second = (teacher.state_dict() for teacher in teachers)
    assert list(first) == list(second)
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_follows_a_distributed_model(tmp_path: Path) -> None:
    dist.init_process_group("gloo", init_method=f"file://{tmp_path / 'rendezvous'}", rank=0, world_size=1)
    try:
        model = make_tower()
        wrapped = DistributedDataParallel(model)
        teachers = [EMATeacher(model), EMATeacher(wrapped)]
        change(model, 1)
        for teacher, source in ((teachers[0], wrapped), (teachers[1], model)):
            teacher.update(source)
        first, second = (teacher.state_dict() for teacher in teachers)
        assert list(first) == list(second)
        assert all(torch.equal(first[name], second[name]) for name in first)
        assert teachers[1].updates == 1
    finally:
        dist.destroy_process_group()


def test_follows_a_model_of_fabric() -> None:
    fabric, model = Fabric(accelerator="cpu"), make_tower()
    wrapped, optimizer = fabric.setup(model, torch.optim.SGD(model.parameters(), lr=0.1))
    teacher = EMATeacher(wrapped)
    assert isinstance(teacher.module, Tower)
    teacher.follow(wrapped, optimizer)
    fabric.backward(wrapped(torch.randn(8, 4)).sum())
    optimizer.step()
    assert teacher.updates == 1
    teacher.update(model)
    assert teacher.updates == 2


@pytest.mark.filterwarnings("ignore:FSDP is switching to use `NO_SHARD`")
def test_a_teacher_in_fsdp1_is_refused(tmp_path: Path) -> None:
    dist.init_process_group("gloo", init_method=f"file://{tmp_path / 'rendezvous'}", rank=0, world_size=1)
    try:
        model = make_tower()
        for original in (False, True):
            teacher = EMATeacher(model)
            FullyShardedDataParallel(teacher.module, use_orig_params=original, device_id=torch.device("cpu"))
            with pytest.raises(ValueError, match=r"teacher\.module holds a FullyShardedDataParallel, .*fully_shard on the model"):
                teacher.update(model)
    finally:
        dist.destroy_process_group()


@pytest.mark.parametrize("other", [Tower(5), nn.Linear(4, 3), nn.Sequential(Tower(3), nn.Linear(3, 3))])
def test_another_architecture_is_refused(other: nn.Module) -> None:
    teacher = EMATeacher(make_tower())
    with pytest.raises(ValueError, match=r"model differs from the teacher at .* Build a new EMATeacher"):
        teacher.update(other)
    assert teacher.updates == 0


@pytest.mark.parametrize("decay", [-0.1, 1.0, 1.5, float("nan")])
def test_decay_outside_its_range_is_refused(decay: float) -> None:
    with pytest.raises(ValueError, match="decay is"):
        EMATeacher(make_tower(), decay)


def test_what_is_no_module_is_refused() -> None:
    with pytest.raises(TypeError, match=r"model is a function; need a torch\.nn\.Module"):
        EMATeacher(lambda x: x)  # type: ignore[arg-type]


def test_the_same_tensors_in_another_order_are_refused() -> None:
    first = nn.ModuleDict({"a": nn.Linear(2, 2), "b": nn.Linear(2, 2)})
    second = nn.ModuleDict({"b": nn.Linear(2, 2), "a": nn.Linear(2, 2)})
    with pytest.raises(ValueError, match=r"model differs from the teacher at 'a\.weight'"):
        EMATeacher(first).update(second)


@pytest.mark.parametrize("put", ["teacher", "parent", "module", "submodule"])
def test_stays_in_eval_mode_whoever_is_trained(put: str) -> None:
    teacher = EMATeacher(make_tower())
    x = torch.randn(8, 4)
    expected = teacher(x)
    owners = {"teacher": teacher, "parent": nn.ModuleDict({"teacher": teacher}), "module": teacher.module}
    owners["submodule"] = teacher.module.get_submodule("drop")
    owners[put].train()
    assert torch.equal(teacher(x), expected)
    owners[put].train()
    assert not any(module.training for module in teacher.module.modules())


@pytest.mark.parametrize("fullgraph", [False, True])
@pytest.mark.parametrize("inside", [False, True])
def test_stays_in_eval_mode_where_it_is_compiled(fullgraph: bool, inside: bool) -> None:
    teacher, x = EMATeacher(make_tower()), torch.randn(8, 4)
    expected = teacher(x)
    called: Any = (lambda given: teacher(given)) if inside else teacher
    compiled: Any = torch.compile(called, backend="eager", fullgraph=fullgraph)
    for put in (None, teacher.module, teacher.module.get_submodule("drop")):
        if put is not None:
            put.train()
        for _ in range(2):
            assert torch.equal(compiled(x), expected)


def test_the_averaged_model_is_not_replaced() -> None:
    teacher = EMATeacher(make_tower())
    before = teacher.module
    for value in (torch.compile(before, backend="eager"), make_tower(), None):
        with pytest.raises(
            AttributeError, match=rf"teacher\.module is set to a {type(value).__name__}; .* torch\.compile\(teacher\)"
        ):
            teacher.module = value  # type: ignore[misc, assignment]
    assert teacher.module is before
    assert list(teacher._modules) == ["average", "exact"]


class Caching(nn.Linear):
    """That keeps a buffer of the last forward, as rotary positions are."""

    def __init__(self) -> None:
        super().__init__(4, 3)
        self.register_buffer("cache", torch.zeros(3), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        output = super().forward(x)
        self.cache = output[0].detach()
        return output


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("inside", ["forward", "build", "cast", "update", "load"])
def test_what_inference_mode_made_is_averaged_outside(dtype: torch.dtype, inside: str) -> None:
    model = Caching().to(dtype)
    x = torch.randn(2, 4, dtype=dtype)
    with torch.inference_mode(inside == "build"):
        teacher = EMATeacher(model, decay=0.5, warmup=False)
    with torch.inference_mode():
        if inside == "forward":
            teacher(x)
        elif inside == "cast":
            teacher.double()
        elif inside == "update":
            teacher.update(model)
        elif inside == "load":
            teacher.load_state_dict(teacher.state_dict(), assign=True)
    before = teacher.module.get_parameter("weight").double().clone()
    with torch.no_grad():
        model.weight.fill_(2.0)
    model(x)
    teacher.load_state_dict(teacher.state_dict())
    teacher.update(model)
    tolerance = float(torch.finfo(dtype).eps)
    torch.testing.assert_close(teacher.module.get_parameter("weight").double(), (before + 2) / 2, rtol=0, atol=tolerance)
    assert isinstance(teacher.module.weight, nn.Parameter)


class Holder(nn.Module):
    """A model that holds its own teachers."""

    def __init__(self) -> None:
        super().__init__()
        self.tower = make_tower()
        self.slow, self.fast = EMATeacher(self, 0.9, warmup=False), EMATeacher(self, 0.5, warmup=False)

    def forward(self, x: Tensor) -> Tensor:
        output: Tensor = self.tower(x)
        return output


def test_teachers_inside_the_model_are_no_part_of_the_average() -> None:
    model = Holder()
    before = model.tower.linear.weight.detach().clone()
    optimizer = torch.optim.SGD(model.tower.parameters(), lr=1.0)
    for teacher in (model.slow, model.fast):
        teacher.follow(model, optimizer)
    model(torch.randn(8, 4)).square().sum().backward()
    optimizer.step()
    moved = model.tower.linear.weight.detach() - before
    for teacher, share in ((model.slow, 0.1), (model.fast, 0.5)):
        assert teacher.updates == 1
        torch.testing.assert_close(teacher.module.get_parameter("tower.linear.weight").detach(), before + share * moved)


def test_what_is_the_teacher_is_refused() -> None:
    model = make_tower()
    teacher = EMATeacher(model)
    for act in (teacher.update, EMATeacher, lambda given: teacher.follow(given, torch.optim.SGD(given.parameters(), lr=0.1))):
        with pytest.raises(ValueError, match="model is an EMATeacher; need the student"):
            act(teacher)
    with pytest.raises(ValueError, match=r"model shares linear\.weight with the teacher"):
        teacher.update(teacher.module)
    model.linear.load_state_dict(teacher.module.get_submodule("linear").state_dict(), assign=True)
    with pytest.raises(ValueError, match=r"model shares linear\.weight with the teacher"):
        teacher.update(model)
    assert teacher.updates == 0


def test_what_has_no_shape_yet_is_refused() -> None:
    with pytest.raises(ValueError, match=r"model\.1\.weight has no shape yet; .* Run a batch through it first"):
        EMATeacher(nn.Sequential(nn.Linear(2, 3), nn.LazyLinear(4)))
