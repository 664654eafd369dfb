"""open_clip's own loop, arguments and training program with our losses, on a tiny model of its own."""

import copy
import csv
import json
import os
import shutil
import subprocess
import sys
from argparse import Namespace
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import patch

import numpy as np
import open_clip
import open_clip_train.main as training
import pytest
import torch
import torch.distributed as dist
from open_clip_train.params import parse_args
from open_clip_train.train import evaluate, train_one_epoch
from PIL import Image
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from otter_losses import DistillationLoss, EMATeacher, InfoNCELoss, LabelSmoothingLoss, OTTERLoss, RobustLoss, SigLIPLoss
from otter_losses.integrations.open_clip import _Program, add_teacher, create_loss, main
from otter_losses.losses.base import PairLoss
from otter_losses.losses.registry import LOSSES
from tests.helpers.checks import relative
from tests.helpers.examples import check_falls, load, theirs
from tests.helpers.paths import ROOT

pytestmark = [
    pytest.mark.usefixtures("one_thread"),
    pytest.mark.filterwarnings("ignore:Converting a tensor with requires_grad=True to a scalar:UserWarning"),
    pytest.mark.filterwarnings("ignore:'pin_memory' argument is set as true but no accelerator:UserWarning"),
]


PAIRS, RATE = 8, 0.1
WORDS = ["umbrella", "tiger", "bicycle", "banana", "castle", "rocket", "violin", "snowflake"]
VISION = {"image_size": 32, "patch_size": 16, "width": 32, "head_width": 16, "layers": 1}
TEXT = {"context_length": 8, "vocab_size": 64, "width": 32, "heads": 2, "layers": 1}
Step = dict[str, Tensor]


class Writer:
    """open_clip's writer of logs, kept."""

    def __init__(self) -> None:
        self.logs: dict[str, list[float]] = {}

    def add_scalar(self, name: str, value: float, step: int) -> None:
        self.logs.setdefault(name, []).append(value)


def make_model(seed: int = 0, **options: Any) -> nn.Module:
    torch.manual_seed(seed)
    model: nn.Module = open_clip.CLIP(16, VISION, TEXT, output_dict=True, **options)
    return model


def make_pairs() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    images = torch.randn(PAIRS, 3, 32, 32, generator=generator)
    return images, torch.randint(1, 64, (PAIRS, 8), generator=generator)


def make_args(*command: str, **changes: Any) -> Namespace:
    """As open_clip's main has them: parsed, and with what it adds."""
    line = ["--model", "tiny", "--device", "cpu", "--precision", "fp32", "--skip-scheduler", "--log-every-n-steps", "1"]
    args: Namespace = parse_args([*line, *command])
    vars(args).update({"rank": 0, "world_size": 1, "distributed": False, "distill": False, "wandb": False, **changes})
    return args


def make_data(batches: int, rank: int = 0, world: int = 1) -> dict[str, Any]:
    """This rank's share of the pairs, in so many batches."""
    images, texts = (tensor.chunk(world)[rank] for tensor in make_pairs())
    loader: Any = list(zip(images.chunk(batches), texts.chunk(batches), strict=True))
    loader = type("Loader", (list,), {"num_batches": batches, "num_samples": PAIRS})(loader)
    return {"train": SimpleNamespace(dataloader=loader, set_epoch=lambda epoch: None)}


def train(
    model: nn.Module,
    loss: nn.Module,
    args: Namespace,
    *,
    epochs: int = 1,
    batches: int = 1,
    teacher: nn.Module | None = None,
    ema: bool = False,
    scaler: Any = None,
) -> tuple[Step, dict[str, list[float]]]:
    """What their loop changes in the model, and what it logs."""
    before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    optimizer = torch.optim.SGD(model.parameters(), lr=RATE)
    if ema:
        assert isinstance(teacher, EMATeacher)
        teacher.follow(model, optimizer)
    data, writer = make_data(batches, args.rank, args.world_size), Writer()
    for epoch in range(epochs):
        train_one_epoch(model, data, loss, epoch, optimizer, scaler, None, teacher if args.distill else None, args, writer)
    changes = {name: parameter.detach() - before[name] for name, parameter in model.named_parameters()}
    return {name.removeprefix("module."): change for name, change in changes.items()}, writer.logs


def by_hand(model: nn.Module, loss: nn.Module, *, teacher: nn.Module | None = None, drop: str = "nothing") -> Step:
    """The change of one step of SGD on all pairs, without their loop, and without one output of the teacher."""
    output = model(*make_pairs())
    taught = {} if teacher is None else {f"dist_{name}": value.detach() for name, value in teacher(*make_pairs()).items()}
    taught.pop(drop, None)
    loss(**output, **taught).backward()
    return descent(model)


def descent(model: nn.Module) -> Step:
    """A step of SGD."""
    return {name: -RATE * parameter.grad for name, parameter in model.named_parameters() if parameter.grad is not None}


def check_same(actual: Step, expected: Step, bound: float = 1e-4) -> None:
    assert actual.keys() == expected.keys()
    most = max(float(change.norm()) for change in expected.values())
    assert most > 1e-3
    for name, change in expected.items():
        assert relative(actual[name], change, floor=1e-3 * most) <= bound, name


def differ(one: Step, other: Step) -> bool:
    """Far beyond the bound of `check_same`."""
    return any(relative(one[name], other[name], floor=1e-3) > 5e-3 for name in one)


def test_their_loop_takes_the_step_of_the_loss() -> None:
    loss = create_loss(make_args(), alpha=0.3)
    change, logs = train(make_model(), loss, make_args())
    check_same(change, by_hand(make_model(), OTTERLoss(alpha=0.3)))
    assert logs["train/contrastive_loss"][0] + logs["train/distill_loss"][0] == pytest.approx(logs["train/loss"][0], rel=1e-6)
    assert {name for name in logs if "loss" in name} == {"train/contrastive_loss", "train/distill_loss", "train/loss"}


def test_every_part_is_a_scalar_that_tasks_sum_too() -> None:
    parts = OTTERLoss()(**make_model()(*make_pairs()), output_dict=True)
    assert isinstance(parts, dict)
    assert all(name.endswith("_loss") and part.shape == () for name, part in parts.items())


def test_without_doubt_it_is_their_loss() -> None:
    args = make_args()
    ours, logs = train(make_model(), create_loss(args, alpha=1.0), args, epochs=3)
    clip, clip_logs = train(make_model(), open_clip.create_loss(args), args, epochs=3)
    check_same(ours, clip)
    assert logs["train/loss"] == pytest.approx(clip_logs["train/loss"], rel=1e-5)


def test_sigmoid_loss_is_theirs() -> None:
    args = make_args("--siglip")
    bias: dict[str, Any] = {"init_logit_scale": 2.3, "init_logit_bias": -10.0}
    loss = create_loss(args)
    assert isinstance(loss, SigLIPLoss)
    ours, _ = train(make_model(**bias), loss, args)
    siglip, _ = train(make_model(**bias), open_clip.create_loss(args), args)
    assert float(siglip["logit_bias"].abs()) > 1e-3
    check_same(ours, siglip)


@pytest.mark.parametrize("loss", [RobustLoss, InfoNCELoss, LabelSmoothingLoss, DistillationLoss])
def test_any_of_our_losses_takes_its_step(loss: type[PairLoss]) -> None:
    model, frozen = make_model(), make_model(seed=1, init_logit_scale=4.0)
    add_teacher(model, frozen)
    change, _ = train(model, create_loss(make_args(), loss, q=0.4), make_args())
    options: dict[str, Any] = {"q": 0.4}
    expected = by_hand(make_model(), loss(**options), teacher=frozen)
    check_same(change, expected, 5e-4)
    assert differ(expected, by_hand(make_model(), loss(), teacher=frozen))
    uses_teacher = next(row.uses_teacher for row in LOSSES.values() if row.module is loss)
    assert differ(expected, by_hand(make_model(), loss(**options))) == uses_teacher


def test_accumulation_keeps_the_teachers_features_and_takes_the_students_scale() -> None:
    model, frozen = make_model(), make_model(seed=1, init_logit_scale=4.0)
    add_teacher(model, frozen)
    args = make_args("--accum-freq", "2")
    change, _ = train(model, create_loss(args, RobustLoss), args, batches=2)
    expected, own = (by_hand(make_model(), RobustLoss(), teacher=frozen, drop=drop) for drop in ("dist_logit_scale", "nothing"))
    expected["logit_scale"] *= 2
    check_same(change, expected)
    assert differ(expected, own)


@pytest.mark.parametrize("bias", [None, -10.0])
def test_distillation(bias: float | None) -> None:
    """DistillClipLoss raises on a logit_bias, in the student's output or the teacher's."""
    args = make_args(distill=True)
    model, teacher = make_model(init_logit_bias=bias), make_model(seed=1, init_logit_bias=bias)
    if bias is not None:
        with pytest.raises(TypeError, match="logit_bias"):
            train(copy.deepcopy(model), open_clip.create_loss(args), args, teacher=teacher)
    expected = by_hand(copy.deepcopy(model), OTTERLoss(), teacher=teacher)
    assert differ(expected, by_hand(copy.deepcopy(model), OTTERLoss()))
    change, logs = train(model, create_loss(args), args, teacher=teacher)
    check_same(change, expected)
    assert logs["train/distill_loss"][0] > 0


def train_with_ema(steps: int) -> tuple[Step, EMATeacher]:
    """Without their loop."""
    model = make_model()
    before = copy.deepcopy(model.state_dict())
    teacher = EMATeacher(model, decay=0.9)
    optimizer = torch.optim.SGD(model.parameters(), lr=RATE)
    for _ in range(steps):
        optimizer.zero_grad()
        by_hand(model, OTTERLoss(), teacher=teacher)
        optimizer.step()
        teacher.update(model)
    return {name: parameter.detach() - before[name] for name, parameter in model.named_parameters()}, teacher


@pytest.mark.parametrize("as_their_teacher", [True, False])
def test_ema_teacher(as_their_teacher: bool) -> None:
    args = make_args(distill=as_their_teacher)
    model = make_model()
    teacher = EMATeacher(model, decay=0.9)
    if not as_their_teacher:
        add_teacher(model, teacher)
    change, _ = train(model, create_loss(args), args, epochs=4, teacher=teacher, ema=True)
    expected, expected_teacher = train_with_ema(4)
    check_same(change, expected)
    assert teacher.updates == 4
    for name, value in expected_teacher.module.named_parameters():
        assert relative(teacher.module.get_parameter(name), value, floor=1e-3) <= 1e-4
    own, _ = train(make_model(), OTTERLoss(), make_args(), epochs=4)
    assert differ(change, own)


@pytest.mark.parametrize("taught", [False, True])
def test_accumulation(taught: bool) -> None:
    """Two batches are one, but for the scale, whose gradient their loop counts once per batch, whatever the loss."""
    model, frozen = make_model(), make_model(seed=1)
    if taught:
        add_teacher(model, frozen)
    args = make_args("--accum-freq", "2")
    change, _ = train(model, create_loss(args), args, batches=2)
    expected = by_hand(make_model(), OTTERLoss(), teacher=frozen if taught else None)
    expected["logit_scale"] *= 2
    check_same(change, expected)


def test_accumulation_updates_the_teacher_once_a_step() -> None:
    model, args = make_model(), make_args("--accum-freq", "2")
    teacher = EMATeacher(model)
    add_teacher(model, teacher)
    train(model, create_loss(args), args, batches=4, teacher=teacher, ema=True)
    assert teacher.updates == 2


def test_a_teacher_that_their_loop_would_forget_is_refused() -> None:
    with pytest.raises(ValueError, match=r"accum_freq 2; open_clip's loop then never calls its teacher.*add_teacher"):
        create_loss(make_args("--accum-freq", "2", distill=True))


def test_a_teacher_that_the_loss_would_ignore_is_refused() -> None:
    with pytest.raises(ValueError, match="distill is True, but LabelSmoothingLoss takes no teacher; drop one of the two"):
        create_loss(make_args(distill=True), LabelSmoothingLoss)


def test_an_added_teacher_speaks_in_training_only() -> None:
    model = make_model()
    handle = add_teacher(model, EMATeacher(model))
    assert "dist_image_features" in model(*make_pairs())
    data = make_data(2)
    args = make_args("--val-frequency", "1", save_logs=False, zeroshot_frequency=0)
    metrics = evaluate(model, {"val": data["train"]}, 1, args)
    assert metrics["num_samples"] == PAIRS
    assert "dist_image_features" not in model(*make_pairs())
    handle.remove()
    assert "dist_image_features" not in model.train()(*make_pairs())


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf:UserWarning")  # dynamo's own look
def test_an_added_teacher_in_a_compiled_model() -> None:
    """Where the hook is part of what is compiled."""
    model = make_model()
    visual: Any = model.visual
    visual.ln_post = nn.Sequential(visual.ln_post, nn.Dropout(0.5))
    teacher = EMATeacher(model, decay=0.9)
    add_teacher(model, teacher)
    compiled: Any = torch.compile(model, backend="eager", fullgraph=True)
    teacher.average.train()  # as nobody should
    taught = compiled(*make_pairs())["dist_image_features"]
    assert relative(taught, teacher(*make_pairs())["image_features"]) <= 1e-6
    assert not taught.requires_grad


def test_an_added_teacher_needs_a_dict() -> None:
    model: Any = make_model()
    model.output_dict = False
    add_teacher(model, EMATeacher(model))
    with pytest.raises(TypeError, match=r"output is a tuple; need a dict\. Build it with output_dict=True"):
        model(*make_pairs())


@pytest.mark.parametrize(
    ("precision", "bound"), [("amp_bf16", 0.05), ("amp", 0.02), ("pure_bf16", 0.1)], ids=lambda value: str(value)
)
def test_precisions(precision: str, bound: float) -> None:
    model = make_model()
    if precision.startswith("pure"):
        model = model.to(torch.bfloat16)
    scaler = torch.amp.GradScaler("cpu", init_scale=128.0) if precision == "amp" else None
    args = make_args("--precision", precision)
    change, logs = train(model, create_loss(args), args, scaler=scaler)
    expected = by_hand(make_model(), OTTERLoss())
    actual, wanted = (torch.cat([step[name].float().flatten() for name in expected]) for step in (change, expected))
    assert relative(actual, wanted) <= bound
    assert logs["train/loss"][0] == pytest.approx(float(OTTERLoss()(**make_model()(*make_pairs()))), rel=0.02)


def test_compiled_model() -> None:
    model = make_model()
    teacher = EMATeacher(model, decay=0.9)
    compiled: Any = torch.compile(model, backend="eager")
    add_teacher(compiled, teacher)
    optimizer = torch.optim.SGD(model.parameters(), lr=RATE)
    teacher.follow(compiled, optimizer)
    before = copy.deepcopy(model.state_dict())
    for epoch in range(3):
        train_one_epoch(compiled, make_data(1), create_loss(make_args()), epoch, optimizer, None, None, None, make_args())
    check_same({name: parameter.detach() - before[name] for name, parameter in model.named_parameters()}, train_with_ema(3)[0])


def test_what_the_command_line_says_reaches_the_loss() -> None:
    args = make_args("--local-loss", "--gather-with-grad", rank=1, world_size=2)
    loss = create_loss(args, alpha=0.7, epsilon=0.1)
    assert isinstance(loss, OTTERLoss)
    assert (loss.rank, loss.world_size, loss.alpha, loss.epsilon) == (1, 2, 0.7, 0.1)
    with pytest.raises(ValueError, match=r"use_horovod is True.*Launch with torchrun"):
        create_loss(make_args("--horovod"))


@pytest.mark.parametrize("name", ["local_loss", "gather_with_grad", "rank", "world_size"])
def test_what_their_arguments_say_is_no_option(name: str) -> None:
    options: dict[str, Any] = {name: 0}
    with pytest.raises(ValueError, match=rf"^{name} given, which open_clip's arguments say, as args\.{name}; leave it out"):
        create_loss(make_args(), alpha=0.2, **options)
    with pytest.raises(ValueError, match=r"^use_horovod given, which open_clip's arguments say, as args\.horovod; leave it out"):
        create_loss(make_args(distill=True), use_horovod=False)


def test_their_loop_needs_one_number() -> None:
    with pytest.raises(ValueError, match=r"reduction is 'none', one loss a pair; need 'mean'.*Leave reduction out\."):
        create_loss(make_args(), reduction="none")


def test_coca_keeps_its_loss() -> None:
    args = make_args("--model", "coca_ViT-B-32", "--coca-caption-loss-weight", "3")
    loss = create_loss(args)
    assert type(loss) is open_clip.CoCaLoss
    assert loss.caption_loss_weight == 3
    with pytest.raises(ValueError, match="alpha given, but model is 'coca_ViT-B-32', which has a loss of its own"):
        create_loss(args, alpha=0.5)
    with pytest.raises(ValueError, match="RobustLoss, q given, but model is 'coca_ViT-B-32', which has a loss of its own"):
        create_loss(args, RobustLoss, q=0.5)
    with pytest.raises(ValueError, match="alpha, epsilon given, but siglip is True"):
        create_loss(make_args("--siglip"), alpha=0.5, epsilon=0.1)


COMMANDS = {
    "plain": (),
    "local": ("--local-loss", "--gather-with-grad"),
    "accumulated": ("--local-loss", "--gather-with-grad", "--accum-freq", "2"),
}


def train_with_all(args: Namespace) -> Step:
    """Three steps of a model with a bias and an EMA teacher."""
    model = make_model(init_logit_bias=-10.0)
    wrapped = DistributedDataParallel(model) if args.distributed else model
    teacher = EMATeacher(wrapped, decay=0.9)
    add_teacher(wrapped, teacher)
    return train(wrapped, create_loss(args), args, epochs=3, batches=args.accum_freq, teacher=teacher, ema=True)[0]


def train_on_this_rank(folder: str) -> None:
    """For `LAUNCHED`."""
    rank, world = dist.get_rank(), dist.get_world_size()
    ranked = {"rank": rank, "world_size": world, "distributed": True}
    changes = {name: train_with_all(make_args(*command, **ranked)) for name, command in COMMANDS.items()}
    torch.save(changes, f"{folder}/{rank}.pt")


LAUNCHED = """
import runpy, sys
from tests import declare_torchvision
import open_clip, torch
from torch.nn import parallel

class OnCPU(parallel.DistributedDataParallel):
    def __init__(self, module, device_ids=None):  # open_clip's program gives a device, which DDP refuses on a CPU
        super().__init__(module)

parallel.DistributedDataParallel = OnCPU
folder = sys.argv.pop(1)
open_clip.add_model_config(f"{folder}/tiny_otter.json")
runpy.run_module("otter_losses.integrations.open_clip", run_name="__main__", alter_sys=True)
from tests.integrations import test_open_clip
test_open_clip.train_on_this_rank(folder)
"""
OTTER = ["--otter", "alpha=0.3", "epsilon=0.1"]
EMA = ["--ema-decay", "0.5"]


def command_in(folder: Path, name: str, batch: int) -> list[str]:
    """For open_clip's training program, with all pairs in each step."""
    return (
        f"--train-data {folder}/pairs.csv --dataset-type csv --csv-separator , --batch-size {batch} --workers 0 --epochs 10 "
        "--model tiny_otter --aug-cfg scale=(1.0,1.0) --device cpu --precision fp32 --opt timm/momentum --momentum 0.5 "
        f"--lr 0.001 --wd 0 --warmup 0 --lr-scheduler const --logs {folder} --name {name} --save-frequency 10"
    ).split()


@pytest.fixture(scope="module")
def launched(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder where two processes of torchrun have run open_clip's program, and `train_on_this_rank` after it."""
    folder = tmp_path_factory.mktemp("launched")
    generator = torch.Generator().manual_seed(0)
    rows = [["filepath", "title"]]
    for index in range(PAIRS):
        picture = torch.randint(0, 256, (32, 32, 3), generator=generator, dtype=torch.uint8)
        rows.append([f"{folder}/{index}.png", WORDS[index]])
        Image.fromarray(picture.numpy()).save(rows[-1][0])
    with open(folder / "pairs.csv", "w", newline="") as file:
        csv.writer(file).writerows(rows)
    config = {"embed_dim": 16, "vision_cfg": VISION, "text_cfg": {**TEXT, "vocab_size": 49408}}
    (folder / "tiny_otter.json").write_text(json.dumps(config))
    (folder / "launched.py").write_text(LAUNCHED)
    # Without the --, torchrun takes open_clip's --logs for an abbreviation of its own --logs-specs.
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2", "--"]
    command += [f"{folder}/launched.py", str(folder), *command_in(folder, "two", PAIRS // 2), *COMMANDS["local"], *OTTER, *EMA]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    ended = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
    assert ended.returncode == 0, ended.stderr
    return folder


@pytest.mark.parametrize("name", COMMANDS)
def test_two_processes_take_the_steps_of_one(launched: Path, name: str) -> None:
    expected = train_with_all(make_args(*COMMANDS[name]))
    for rank in range(2):
        check_same(torch.load(launched / f"{rank}.pt", weights_only=True)[name], expected)


def test_their_program(launched: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In two processes as in one; with a teacher as the command line says."""
    monkeypatch.setattr("open_clip_train.main.setup_logging", lambda *_: None)  # it would stay set up
    open_clip.add_model_config(launched / "tiny_otter.json")
    main([*command_in(launched, "one", PAIRS), *OTTER, *EMA])
    main([*command_in(launched, "own", PAIRS), *OTTER])
    torch.manual_seed(0)
    before = open_clip.create_model("tiny_otter").state_dict()
    changes = {}
    for name in ("one", "two", "own"):
        after = torch.load(launched / name / "checkpoints" / "epoch_10.pt", weights_only=False)["state_dict"]
        changes[name] = {key: after.get(key, after.get(f"module.{key}")) - value for key, value in before.items()}
    check_same(changes["two"], changes["one"])
    assert differ(changes["one"], changes["own"])
    assert "Loss: OTTERLoss(alpha=0.3, epsilon=0.1" in (launched / "two" / "out.log").read_text()


def run_program(folder: Path, name: str, *arguments: str) -> dict[str, Any]:
    """In this process; the checkpoint of its last epoch. Beyond those of `command_in`, six epochs and a checkpoint each third."""
    short = [*command_in(folder, name, PAIRS), "--epochs", "6", "--save-frequency", "3"]
    open_clip.add_model_config(folder / "tiny_otter.json")
    main([*short, *arguments])
    return read(folder, name, 6)


def read(folder: Path, name: str, epoch: int) -> dict[str, Any]:
    checkpoint: dict[str, Any] = torch.load(folder / name / "checkpoints" / f"epoch_{epoch}.pt", weights_only=True)
    return checkpoint


def step_from(start: Step, end: Step) -> Step:
    """Between two states, of what is no count; the names are the model's."""
    return {name.split("module.")[-1]: end[name] - value for name, value in start.items() if value.is_floating_point()}


@pytest.fixture(scope="module")
def whole(launched: Path) -> Path:
    """Has run six epochs in one go, with a teacher, under the name "whole"."""
    with patch("open_clip_train.main.setup_logging"):  # it would stay set up
        run_program(launched, "whole", *OTTER, *EMA)
    return launched


@pytest.mark.parametrize("how", ["path", "latest", "most recent"])
def test_a_resumed_program_is_the_program_in_one_go(
    whole: Path, how: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("open_clip_train.main.setup_logging", lambda *_: None)
    caplog.set_level("INFO")
    name, middle = f"resumed by {how}".replace(" ", "_"), whole / "whole" / "checkpoints" / "epoch_3.pt"
    command = ["--resume", str(middle)] if how == "path" else ["--resume", "latest"]
    if how != "path":
        (whole / name / "checkpoints").mkdir(parents=True)
        file = "epoch_latest.pt" if how == "most recent" else "epoch_3.pt"
        shutil.copy(middle, whole / name / "checkpoints" / file)
        command += ["--save-most-recent"] if how == "most recent" else []
    resumed = run_program(whole, name, *command, *OTTER, *EMA)
    half, wanted = read(whole, "whole", 3), read(whole, "whole", 6)
    check_same(step_from(half["state_dict"], resumed["state_dict"]), step_from(half["state_dict"], wanted["state_dict"]))
    ours, theirs, before = (each["otter_losses"]["teacher"] for each in (resumed, wanted, half))
    check_same(step_from(before, ours), step_from(before, theirs))
    assert [int(each["average.n_averaged"]) for each in (before, ours, theirs)] == [4, 7, 7]
    assert differ(step_from(half["state_dict"], wanted["state_dict"]), step_from(before, theirs))
    assert "Teacher: EMATeacher, decay 0.5, 3 updates" in caplog.text
    assert not [record for record in caplog.records if record.levelname == "WARNING" and "teacher" in record.message]


def test_their_program_with_robust_loss(
    launched: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("open_clip_train.main.setup_logging", lambda *_: None)
    caplog.set_level("INFO")
    alpha = launched / "alpha.npy"
    np.save(alpha, np.linspace(0.05, 0.5, PAIRS, dtype=np.float32))
    believed = run_program(launched, "robust", "--otter", "loss=RobustLoss", f"alpha={alpha}", *EMA)
    assert "Loss: RobustLoss(alpha=0.5, q=0.3" in caplog.text
    assert f"Pairs: alpha of {PAIRS} pairs from {alpha}" in caplog.text
    assert believed["otter_losses"]["otter"] == {"loss": "RobustLoss", "alpha": str(alpha)}
    alike = run_program(launched, "robust_alike", "--otter", "loss=RobustLoss", *EMA)
    untaught = run_program(launched, "robust_untaught", "--otter", "loss=RobustLoss", f"alpha={alpha}")
    start = {name: torch.zeros_like(value) for name, value in believed["state_dict"].items()}
    ends = [step_from(start, run["state_dict"]) for run in (believed, alike, untaught)]
    assert differ(ends[0], ends[1])
    assert differ(ends[0], ends[2])


def test_a_run_writes_down_what_it_was_told(whole: Path, launched: Path) -> None:
    for name in ("whole", "two"):
        parameters = (launched / name / "params.txt").read_text().splitlines()
        assert "ema_decay: 0.5" in parameters
        assert "otter: {'alpha': 0.3, 'epsilon': 0.1}" in parameters
    assert "Teacher: EMATeacher, decay 0.5, 9 updates" in (launched / "two" / "out.log").read_text()
    record = read(launched, "two", 10)["otter_losses"]
    assert (record["otter"], record["ema_decay"]) == ({"alpha": 0.3, "epsilon": 0.1}, 0.5)
    assert int(record["teacher"]["average.n_averaged"]) == 11


@pytest.mark.parametrize(
    ("first", "second", "said"),
    [
        (
            EMA,
            [],
            ["epoch_1.pt has a teacher, which is dropped, as there is no --ema-decay", "'ema_decay': 0.5}, and is resumed"],
        ),
        ([], EMA, ["epoch_1.pt has no teacher, which --ema-decay asks for: it starts as a copy of the model"]),
        (OTTER, ["--otter", "alpha=0.4"], ["with {'otter': {'alpha': 0.3, 'epsilon': 0.1}, 'ema_decay': None}, and is resumed"]),
        (OTTER, OTTER, []),
    ],
)
def test_a_resumed_program_says_what_has_changed(
    launched: Path,
    first: list[str],
    second: list[str],
    said: list[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setattr("open_clip_train.main.setup_logging", lambda *_: None)
    open_clip.add_model_config(launched / "tiny_otter.json")
    command = [*command_in(launched, "run", PAIRS), "--logs", str(tmp_path), "--save-frequency", "1"]
    main([*command, "--epochs", "1", *first])
    caplog.clear()
    main([*command, "--epochs", "2", "--resume", "latest", *second])
    warned = [record.message for record in caplog.records if record.levelname == "WARNING"]
    assert all(any(line in message for message in warned) for line in said)
    assert bool(said) == any("resumed with" in message or "teacher" in message for message in warned)
    after = read(tmp_path, "run", 2)["otter_losses"]
    assert (after["teacher"] is not None) == (second == EMA)


def test_a_checkpoint_of_open_clips_own_is_resumed_with_a_new_teacher(
    launched: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("open_clip_train.main.setup_logging", lambda *_: None)
    import open_clip_train.main as theirs

    open_clip.add_model_config(launched / "tiny_otter.json")
    command = [*command_in(launched, "run", PAIRS), "--logs", str(tmp_path), "--save-frequency", "1"]
    theirs.main([*command, "--epochs", "1"])
    main([*command, "--epochs", "2", "--resume", "latest", *EMA])
    assert "epoch_1.pt has no teacher" in caplog.text
    theirs.main([*command, "--epochs", "3", "--resume", "latest"])  # and theirs takes ours
    assert "otter_losses" not in read(tmp_path, "run", 3)
    assert int(read(tmp_path, "run", 2)["otter_losses"]["teacher"]["average.n_averaged"]) == 2


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        (["--otter", "alhpa=0.3"], "alhpa is no argument of OTTERLoss; .*Did you mean alpha"),
        (["--otter", "loss=InfoNCELoss", "alpha=0.3"], "alpha is no argument of InfoNCELoss"),
        (["--otter", "loss=OTTER"], "loss is 'OTTER'; need one of InfoNCELoss, .*OTTERLoss, RobustLoss. SigLIPLoss comes with"),
        (["--otter", "loss=RobustLoss", "--siglip"], "RobustLoss given, but siglip is True"),
        (["--siglip", *EMA], "--ema-decay given, but SigLIPLoss takes no teacher"),
        (["--otter", "loss=InfoNCELoss", "q=0.3", *EMA], "--ema-decay given, but InfoNCELoss takes no teacher"),
    ],
)
def test_mistakes_on_the_command_line(launched: Path, monkeypatch: pytest.MonkeyPatch, arguments: list[str], error: str) -> None:
    monkeypatch.setattr("open_clip_train.main.setup_logging", lambda *_: None)
    open_clip.add_model_config(launched / "tiny_otter.json")
    with pytest.raises((TypeError, ValueError), match=error):
        main([*command_in(launched, "mistaken", PAIRS), *arguments])


BEFORE_THE_MODEL = {
    "rank=0": r"rank given, which open_clip's arguments say, as args\.rank; leave it out",
    "world_size=1": r"world_size given, which open_clip's arguments say, as args\.world_size; leave it out",
    "reduction=none": "reduction is 'none', one loss a pair; need 'mean'",
}


@pytest.mark.parametrize("option", BEFORE_THE_MODEL)
def test_options_that_their_program_cannot_use_are_refused_before_the_model_is_built(option: str) -> None:
    with patch("open_clip_train.main.create_model_and_transforms") as built:
        with pytest.raises(ValueError, match=BEFORE_THE_MODEL[option]):
            main(["--model", "tiny", "--otter", "epsilon=0.2", option])
        built.assert_not_called()


@pytest.mark.parametrize("decay", ["2", "-1", "nan", "1"])
def test_a_decay_out_of_range_is_refused_before_the_model_is_built(decay: str) -> None:
    with patch("open_clip_train.main.create_model_and_transforms") as built:
        with pytest.raises(ValueError, match=r"decay is .*; need"):
            main(["--model", "tiny", "--ema-decay", decay])
        built.assert_not_called()


def test_options_given_apart_are_options_given_together() -> None:
    said = ["--otter", "alpha=0.2", "gamma_text=2", "--otter", "epsilon=0.3", "alpha=0.4", "--otter", "scope=local"]
    args = _Program(training).parse(["--model", "tiny", *said])
    assert args.otter == {"alpha": 0.4, "gamma_text": 2, "epsilon": 0.3, "scope": "local"}
    assert _Program(training).parse(["--model", "tiny"]).otter == {}
    said = ["--otter", "loss=DistillationLoss", "remove_diagonal=true", "uneven=FALSE", "epsilon=None"]
    given = {"loss": "DistillationLoss", "remove_diagonal": True, "uneven": False, "epsilon": None}
    assert _Program(training).parse(["--model", "tiny", *said]).otter == given


@pytest.mark.parametrize("option", ["alpha", "=0.3"])
def test_an_option_without_a_name_or_a_value_is_refused(option: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["--model", "tiny", "--otter", option])
    assert ended.value.code == 2
    assert f"argument --otter: {option!r} is not OPTION=VALUE, as alpha=0.5 is" in capsys.readouterr().err


def test_a_value_may_hold_what_python_cannot_read() -> None:
    with pytest.raises(ValueError, match=r"backend is '0\.3\.='; need"):
        main(["--model", "tiny", "--otter", "backend=0.3.="])


@pytest.mark.parametrize("name", ["their loss", "ours"])
def test_example_falls(name: str) -> None:
    example = load("open_clip", theirs("open_clip") if name == "their loss" else None)
    check_falls(example.main())


@pytest.mark.skipif(find_spec("open_clip.task") is None, reason="this open_clip has no tasks")
@pytest.mark.parametrize("taught", [False, True])
def test_tasks(taught: bool) -> None:
    """The training API of open_clip's development head."""
    from open_clip.task import CLIPTask, DistillCLIPTask

    images, texts = make_pairs()
    model, frozen = make_model(), make_model(seed=1)
    task = DistillCLIPTask(model, frozen, loss=OTTERLoss()) if taught else CLIPTask(model, loss=OTTERLoss())
    losses = task.train()(images, texts)
    losses = losses[0] if isinstance(losses, tuple) else losses
    losses["loss"].backward()
    expected = by_hand(make_model(), OTTERLoss(), teacher=frozen if taught else None)
    check_same(descent(model), expected)
