"""Runs of Hugging Face's Trainers that are resumed go on with their teacher: a run in two parts is the run in one go."""

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import Trainer, TrainingArguments, default_data_collator

from docs.examples.sentence_transformers import load_names
from otter_losses import EMATeacher, OTTERLoss
from otter_losses.integrations.sentence_transformers import PairRankingLoss
from otter_losses.integrations.transformers import TeacherCallback
from tests.integrations import test_sentence_transformers as sentences
from tests.integrations.test_transformers import RATE, collated, make_model, make_pairs, make_trainer, parameters_of

pytestmark = [
    pytest.mark.usefixtures("one_thread"),
    pytest.mark.filterwarnings("ignore:'pin_memory' argument is set:UserWarning"),
]

STEPS, SAVED = 5, 3
SAVING = {"max_steps": STEPS, "save_strategy": "steps", "save_steps": SAVED, "logging_strategy": "steps", "logging_steps": 1}


class Run:
    """A model and its teacher, in a Trainer that saves."""

    def __init__(self, folder: Path, *, by: float = 0.0, teacher: str | None = "ema", **options: Any) -> None:
        self.model = changed(make_model(), by)
        self.teacher = EMATeacher(self.model, decay=0.8) if teacher == "ema" else None
        given = {"teacher": self.teacher} if self.teacher is not None else {}
        self.trainer = make_trainer(self.model, folder, loss=OTTERLoss(), **given, **{**SAVING, **options})

    def numbers(self) -> dict[str, Tensor]:
        return numbers(self.model, self.teacher)


class Alone(Run):
    """The callback in transformers' own Trainer, which trains the model's own loss."""

    def __init__(self, folder: Path, *, by: float = 0.0, **options: Any) -> None:
        self.model = changed(make_model(), by)
        self.teacher = EMATeacher(self.model, decay=0.8)
        given = {
            "per_device_train_batch_size": 4,
            "optim": "sgd",
            "learning_rate": RATE,
            "lr_scheduler_type": "constant",
            "train_sampling_strategy": "sequential",
            "report_to": "none",
            "disable_tqdm": True,
            "use_cpu": True,
        }
        self.trainer = Trainer(
            self.model,
            TrainingArguments(str(folder), **{**given, **SAVING, **options}),
            data_collator=lambda pairs: {**default_data_collator(pairs), "return_loss": True},
            train_dataset=make_pairs(),
            callbacks=[TeacherCallback(self.teacher)],
        )


class Sentences(Run):
    def __init__(self, folder: Path, *, by: float = 0.0, **options: Any) -> None:
        names = load_names(sentences.PAIRS)
        if not (folder.parent / "bert").exists():
            sentences.save_model(names, folder.parent / "bert")
        self.model = changed(sentences.make_model(folder.parent / "bert"), by)
        self.teacher = EMATeacher(self.model, decay=0.8)
        loss = PairRankingLoss(self.model, OTTERLoss(), teacher=self.teacher)
        self.trainer = sentences.make_trainer(self.model, names, folder, loss, **SAVING, **options)
        self.trainer.add_callback(TeacherCallback(self.teacher))


def changed(model: Any, by: float) -> Any:
    """With other weights: what is resumed comes from the checkpoint."""
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += by * torch.randn_like(parameter)
    return model


def numbers(model: nn.Module, teacher: EMATeacher | None) -> dict[str, Tensor]:
    taught = {} if teacher is None else {f"teacher {name}": value for name, value in teacher.state_dict().items()}
    return {**parameters_of(model), **taught}


def check_same(actual: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    torch.testing.assert_close(actual, expected, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize(
    ("kind", "how"),
    [
        (Run, "by its path"),
        (Run, "without its optimizer"),
        (Alone, "among the arguments"),
        (Alone, "the last in the folder"),
        (Sentences, "by its path"),
    ],
)
def test_a_run_in_two_parts_is_the_run_in_one_go(kind: type[Run], how: str, tmp_path: Path) -> None:
    folder, other = tmp_path / "one", tmp_path / "two"
    whole = kind(folder, save_only_model=how == "without its optimizer")
    whole.trainer.train()
    assert whole.teacher is not None
    assert whole.teacher.updates == STEPS
    if how == "among the arguments":  # in a folder of another name
        path = str(shutil.move(folder / f"checkpoint-{SAVED}", tmp_path / "kept"))
        again = kind(other, by=0.1, resume_from_checkpoint=path)
    else:
        path = str(folder / f"checkpoint-{SAVED}")
        shutil.rmtree(folder / f"checkpoint-{STEPS}")
        again = kind(folder, by=0.1)
    again.trainer.train(resume_from_checkpoint=True if how == "the last in the folder" else path)
    check_same(again.numbers(), whole.numbers())


def test_our_trainer_resumes_from_anywhere(tmp_path: Path) -> None:
    whole = Run(tmp_path / "one")
    whole.trainer.train()
    again = Run(tmp_path / "two", by=0.1)
    again.trainer.train(resume_from_checkpoint=shutil.move(tmp_path / "one" / f"checkpoint-{SAVED}", tmp_path / "kept"))
    check_same(again.numbers(), whole.numbers())


def test_another_runs_teacher_is_not_taken(tmp_path: Path) -> None:
    """From the folder where the checkpoint of that step would lie, had it been this run's."""
    Alone(tmp_path / "one").trainer.train()
    Alone(tmp_path / "two", by=0.1).trainer.train()
    again = Alone(tmp_path / "two", by=0.2)
    with pytest.warns(UserWarning, match=r"step 3, .* was not found; pass its path as the arguments' resume_from_checkpoint"):
        again.trainer.train(resume_from_checkpoint=str(tmp_path / "one" / f"checkpoint-{SAVED}"))
    assert again.teacher is not None
    assert again.teacher.updates == STEPS - SAVED


@pytest.mark.parametrize("kind", [Run, Alone])
def test_a_checkpoint_without_a_teacher_says_so(kind: type[Run], tmp_path: Path) -> None:
    kind(tmp_path).trainer.train()
    (tmp_path / f"checkpoint-{SAVED}" / "teacher.pt").unlink()
    again = kind(tmp_path)
    with pytest.warns(UserWarning, match=r"step 3, .* has no teacher\.pt\. The teacher goes on as it is, after 0 updates"):
        again.trainer.train(resume_from_checkpoint=str(tmp_path / f"checkpoint-{SAVED}"))
    assert again.teacher is not None
    assert again.teacher.updates == STEPS - SAVED


def test_a_teacher_that_is_left_behind_says_so(tmp_path: Path) -> None:
    Run(tmp_path).trainer.train()
    with pytest.warns(UserWarning, match=r"checkpoint-3 has an EMATeacher, which this run does not use"):
        Run(tmp_path, teacher=None).trainer.train(resume_from_checkpoint=str(tmp_path / f"checkpoint-{SAVED}"))


def test_another_models_teacher_is_refused(tmp_path: Path) -> None:
    Run(tmp_path).trainer.train()
    file = tmp_path / f"checkpoint-{SAVED}" / "teacher.pt"
    torch.save(EMATeacher(nn.Linear(2, 2)).state_dict(), file)
    with pytest.raises(RuntimeError, match="Missing key"):
        Run(tmp_path).trainer.train(resume_from_checkpoint=str(file.parent))


def test_a_damaged_teacher_is_named(tmp_path: Path) -> None:
    Run(tmp_path).trainer.train()
    file = tmp_path / f"checkpoint-{SAVED}" / "teacher.pt"
    whole = file.read_bytes()
    for left in (0, 10, len(whole) // 2):
        file.write_bytes(whole[:left])
        with pytest.raises(
            RuntimeError, match=r"checkpoint-3/teacher\.pt cannot be read; need .* Copy it anew, or delete it"
        ) as said:
            Run(tmp_path).trainer.train(resume_from_checkpoint=str(file.parent))
        assert "weights_only" not in str(said.value)
    torch.save(nn.Linear(2, 2), file)  # which torch refuses to load safely
    with pytest.raises(RuntimeError, match=r"teacher\.pt cannot be read"):
        Run(tmp_path).trainer.train(resume_from_checkpoint=str(file.parent))


@pytest.mark.parametrize("kind", [Run, Alone])
def test_a_second_teacher_is_refused(kind: type[Run], tmp_path: Path) -> None:
    """Also one that was added later; without it the run goes."""
    run = kind(tmp_path, max_steps=2)
    second = TeacherCallback(EMATeacher(run.model, decay=0.1))
    run.trainer.add_callback(second)
    with pytest.raises(ValueError, match="the Trainer has two TeacherCallbacks, which would write one file; need one"):
        run.trainer.train()
    run.trainer.optimizer.step()
    assert run.teacher is not None
    assert (run.teacher.updates, second.teacher.updates) == (0, 0)  # neither follows
    run.trainer.remove_callback(second)
    run.trainer.train()
    assert run.teacher.updates == 2


def test_the_teacher_goes_with_its_checkpoint(tmp_path: Path) -> None:
    """Deleted with it, and loaded with the best model."""
    run = Run(
        tmp_path,
        max_steps=4,
        save_steps=1,
        save_total_limit=2,
        eval_strategy="steps",
        eval_steps=1,
        load_best_model_at_end=True,
        metric_for_best_model="eval_loss",
        greater_is_better=True,  # the first, as the loss falls
    )
    run.trainer.train()
    assert [file.parent.name for file in sorted(tmp_path.glob("*/teacher.pt"))] == ["checkpoint-1", "checkpoint-4"]
    assert run.trainer.state.best_model_checkpoint == str(tmp_path / "checkpoint-1")
    assert run.teacher is not None
    assert run.teacher.updates == 1
    first = Run(tmp_path / "first", max_steps=1)
    first.trainer.train()
    check_same(run.numbers(), first.numbers())


def test_a_second_run_does_not_follow_twice(tmp_path: Path) -> None:
    run = Alone(tmp_path, max_steps=2)
    run.trainer.train()
    run.trainer.train()
    assert run.teacher is not None
    assert run.teacher.updates == 4
    output = run.model(**collated(make_pairs()), return_loss=True)
    output.loss.backward()
    run.trainer.optimizer.step()
    assert run.teacher.updates == 4  # the run is over
