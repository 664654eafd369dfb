"""Settings of a run: TOML files, each of which can extend others, and overrides on the command line.

Every setting is a field below; a key that is none, or a value of another type, is an error that names it. Later files win over
earlier ones and over what they extend, setting by setting; `loss.options` and `model.text_config` are replaced as a whole.
"""

import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields, is_dataclass
from pathlib import Path
from typing import Any, get_origin, get_type_hints

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

FOLDER = Path(__file__).parent / "configs"
PRECISIONS = ("auto", "fp16", "bf16", "fp32")
TOKENIZERS = ("pretrained", "hash")
DIRECTIONS = ("sum", "mean")
WORDS = {int: "a whole number", float: "a number", str: "a string", bool: "true or false", dict: "a table"}


class ConfigError(ValueError):
    """A setting that cannot be meant."""


@dataclass(frozen=True)
class DataConfig:
    """The training pairs. `name` and `pairs` say what they are expected to be; `prepare` makes the folder that `--data` names."""

    name: str = "CC3M"
    pairs: int = 2_911_810
    size: int = 224
    workers: int = 8
    max_bad_share: float = 0.01


@dataclass(frozen=True)
class ModelConfig:
    """Two encoders into one space of `width` dimensions, and one or two learned temperatures.

    `image` is a timm model; `text` one of transformers, by name or folder. Without `pretrained` both start from random weights
    and nothing is looked up: the text encoder is then what `text_config` says, a BERT unless it holds a `model_type`. The "hash"
    tokenizer is for trials without any files.
    """

    image: str = "resnet50.ram_in1k"
    text: str = "johngiorgi/declutr-sci-base"
    pretrained: bool = True
    text_config: dict[str, Any] = field(default_factory=dict)
    tokenizer: str = "pretrained"
    max_tokens: int = 60
    width: int = 768
    temperatures: int = 1
    log_scale: float = 3.9
    min_scale: float = 1.0
    max_scale: float = 100.0


@dataclass(frozen=True)
class LossConfig:
    """A loss of otter_losses by its class's name, "OTTERLoss.official" among them, with its keywords.

    `directions` is "sum" or "mean" of image to text and text to image. `teacher` is whether an EMA teacher gives the targets.
    """

    name: str = "InfoNCELoss"
    label: str = ""
    directions: str = "sum"
    teacher: bool = False
    options: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class TrainConfig:
    """Optimisation. `batch` is that of all devices together; `chunk` is how many pairs a device encodes at a time.

    `deterministic` makes a GPU repeat itself to the bit, as a CPU does anyway, at the price of speed.
    """

    epochs: int = 10
    batch: int = 512
    chunk: int = 64
    lr: float = 3e-3
    momentum: float = 0.9
    weight_decay: float = 0.0
    ema_decay: float = 0.999
    ema_warmup: bool = True
    precision: str = "auto"
    sync_batch_norm: bool = True
    seed: int = 0
    deterministic: bool = False
    log_every: int = 20
    diagnose_every: int = 500
    save_every: int = 1000


@dataclass(frozen=True)
class Config:
    """All settings of a run."""

    data: DataConfig = field(default_factory=DataConfig)
    model: ModelConfig = field(default_factory=ModelConfig)
    loss: LossConfig = field(default_factory=LossConfig)
    train: TrainConfig = field(default_factory=TrainConfig)

    def __post_init__(self) -> None:
        for section in fields(self):
            for name, value in asdict(getattr(self, section.name)).items():
                _check_sign(f"{section.name}.{name}", value)
        for name, value, choices in (
            ("train.precision", self.train.precision, PRECISIONS),
            ("model.tokenizer", self.model.tokenizer, TOKENIZERS),
            ("loss.directions", self.loss.directions, DIRECTIONS),
        ):
            if value not in choices:
                raise ConfigError(f"{name} is {value!r}; need one of {', '.join(map(repr, choices))}.")
        if self.model.temperatures not in (1, 2):
            raise ConfigError(f"model.temperatures is {self.model.temperatures}; need 1, or 2 for OTTERLoss.official's second.")
        if not 0 <= self.data.max_bad_share <= 1:
            raise ConfigError(f"data.max_bad_share is {self.data.max_bad_share}; need a share in [0, 1].")

    def as_dict(self) -> dict[str, Any]:
        """Plain tables, as `from_dict` reads them."""
        return asdict(self)

    @classmethod
    def from_dict(cls, tables: Mapping[str, Any]) -> "Config":
        """The settings of plain tables; what they leave out has its default.

        Raises:
            ConfigError: a key that is no setting, or a value of the wrong type or out of range.

        Example:
            >>> Config.from_dict({"train": {"batch": 256}}).train.batch
            256
        """
        config: Config = _build(cls, tables, "")
        return config


def load(paths: Sequence[str | Path], overrides: Sequence[str] = ()) -> Config:
    """The settings of TOML files, later ones winning, and of overrides such as ``train.batch=256``.

    Files are looked for here, then among those in `FOLDER`, where the ending may be left out.

    Raises:
        ConfigError: a file that is missing, is no TOML or extends itself; otherwise as `Config.from_dict`.

    Example:
        >>> load(["otter"], ["train.epochs=1"]).loss.options["epsilon"]
        0.15
    """
    tables: dict[str, Any] = {}
    for path in paths:
        tables = _merged(tables, _read(_find(Path(path), Path()), ()))
    for override in overrides:
        name, equals, text = override.partition("=")
        if not equals or not name:
            raise ConfigError(f"--set {override!r} is no setting; need SECTION.NAME=VALUE, as train.batch=256.")
        _put(tables, name.strip().split("."), _value(text))
    return Config.from_dict(tables)


def _find(path: Path, beside: Path) -> Path:
    candidates = [beside / path, FOLDER / path, FOLDER / f"{path}.toml"]
    for candidate in candidates:
        if candidate.is_file():
            return candidate
    ours = ", ".join(sorted(each.stem for each in FOLDER.glob("*.toml")))
    raise ConfigError(f"there is no configuration {str(path)!r}; need a TOML file, or one of {ours}.")


def _read(path: Path, readers: tuple[Path, ...]) -> dict[str, Any]:
    if path.resolve() in readers:
        raise ConfigError(f"{path} extends itself, by way of {', '.join(map(str, readers))}.")
    try:
        own = tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise ConfigError(f"{path} cannot be read as TOML: {error}") from error
    parents = own.pop("extends", [])
    tables: dict[str, Any] = {}
    for parent in [parents] if isinstance(parents, str) else parents:
        tables = _merged(tables, _read(_find(Path(parent), path.parent), (*readers, path.resolve())))
    return _merged(tables, own)


def _merged(low: Mapping[str, Any], high: Mapping[str, Any]) -> dict[str, Any]:
    """Sections are merged; the settings in them are replaced."""
    merged = dict(low)
    for name, section in high.items():
        both = isinstance(section, Mapping) and isinstance(merged.get(name), Mapping)
        merged[name] = {**merged[name], **section} if both else section
    return merged


def _put(tables: dict[str, Any], path: Sequence[str], value: Any) -> None:
    *above, last = path
    for key in above:
        inner = tables.get(key)
        tables[key] = dict(inner) if isinstance(inner, Mapping) else {}
        tables = tables[key]
    tables[last] = value


def _value(text: str) -> Any:
    """A TOML value; what is none is a string."""
    try:
        return tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        return text


def _build(kind: Any, table: Any, where: str) -> Any:
    if not isinstance(table, Mapping):
        raise ConfigError(f"{where} is {table!r}; need a table of settings.")
    hints = get_type_hints(kind)
    for key in table:
        if key not in hints:
            raise ConfigError(f"{f'{where}.{key}'.lstrip('.')} is no setting; need one of {', '.join(hints)}.")
    return kind(**{key: _typed(hints[key], value, f"{where}.{key}".lstrip(".")) for key, value in table.items()})


def _typed(kind: Any, value: Any, where: str) -> Any:
    if is_dataclass(kind):
        return _build(kind, value, where)
    if kind is float and type(value) is int:
        return float(value)
    plain = get_origin(kind) or kind
    if type(value) is not plain:
        raise ConfigError(f"{where} is {value!r}, a {type(value).__name__}; need {WORDS[plain]}.")
    return value


MAY_BE_ZERO = ("pairs", "workers", "max_bad_share", "weight_decay", "momentum", "ema_decay", "seed", "log_scale")


def _check_sign(name: str, value: Any) -> None:
    if type(value) in (int, float):
        zero = name.rpartition(".")[2] in MAY_BE_ZERO
        if not (value >= 0 if zero else value > 0):
            raise ConfigError(f"{name} is {value}; need {'0 or more' if zero else 'more than 0'}.")
