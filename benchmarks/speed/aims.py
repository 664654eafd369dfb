"""What is asked of the losses' speed: the benchmark's first table is made from this."""

from dataclasses import dataclass

SMALL = (512, 1024, 4096)
LARGE = (16384, 32768)
HALF = ("bfloat16", "autocast")


@dataclass(frozen=True)
class Aim:
    """At most this much of another's time, or in milliseconds where no other is named.

    `pairs` are sizes, each asked for alone; `width` is how many transport problems there are, else the features' width.
    `against_mode` says that the other's features come in another mode.
    """

    name: str
    against: str
    pairs: tuple[int, ...]
    needed: float
    aim: float | None = None
    mode: str = "bfloat16"
    against_mode: str = ""
    group: str = "losses"
    width: int = 512

    @property
    def words(self) -> str:
        mode = self.mode if self.group == "losses" else ""
        other = ", ".join(each for each in (self.against, self.against_mode) if each)
        return f"{self.name}{', ' if mode else ''}{mode}" + (f" / {other}" if other else ", ms")


CLIP, SIGLIP = "eager ClipLoss", "eager SigLIP"
OURS = ("InfoNCELoss", "OTTERLoss", "SigLIPLoss")

AIMS = (
    *(Aim("OTTERLoss", CLIP, SMALL, 1.0, 0.8, mode) for mode in HALF),
    *(Aim("InfoNCELoss", CLIP, SMALL, 0.9, 0.7, mode) for mode in HALF),
    *(Aim("SigLIPLoss", SIGLIP, SMALL, 1.0, 0.7, mode) for mode in HALF),
    *(Aim("OTTERLoss", CLIP, LARGE, 0.7, 0.5, mode) for mode in HALF),
    Aim("InfoNCELoss", CLIP, LARGE, 0.28, 0.22),
    Aim("InfoNCELoss", "eager ClipLoss, torch.compile", (16384,), 0.6),
    Aim("InfoNCELoss", "memeff", LARGE, 0.5),
    Aim("SigLIPLoss", SIGLIP, LARGE, 0.35),
    Aim("SigLIPLoss", "siglip-kernel", LARGE, 0.9, 0.75),
    *(Aim(name, name, (*SMALL, *LARGE), 1.1, 1.0, "autocast", "bfloat16") for name in OURS),
    Aim("OTTERLoss", CLIP, LARGE, 0.7, 0.4, "float32"),
    Aim("InfoNCELoss [torch]", CLIP, (4096, *LARGE), 1.5, 1.0),
    Aim("OTTERLoss [torch]", CLIP, (4096, *LARGE), 3.0, 2.0),
    Aim("otter_targets", "released targets", SMALL, 1 / 5, 1 / 10, "float32", group="targets"),
    Aim("otter_targets", "released targets, torch.compile", SMALL, 1 / 3, mode="float32", group="targets"),
    Aim("sinkhorn_knopp", "POT, batch solver", (256,), 1 / 5, 1 / 10, "float32", group="sinkhorn", width=64),
    Aim("sinkhorn_knopp", "a loop, torch.compile", (256,), 1 / 2, mode="float32", group="sinkhorn", width=64),
    Aim("InfoNCELoss", "", (65536,), 40, 33),
    Aim("InfoNCELoss", "", (262144,), 650, 500),
    Aim("OTTERLoss", "", (262144,), 4000, 2500),
)
