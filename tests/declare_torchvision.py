"""Lets torchvision be imported beside a torch without CUDA: its wheels expect two operators that only their own library declares.

Imported before torchvision, timm or open_clip; as a script it runs another one after it: ``declare_torchvision.py example.py``.
"""

import runpy
import sys

import torch

if not torch.cuda.is_available():
    _library = torch.library.Library("torchvision", "DEF")  # type: ignore[no-untyped-call]
    _library.define("nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")  # type: ignore[no-untyped-call]
    _library.define("qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")  # type: ignore[no-untyped-call]

if __name__ == "__main__":
    sys.argv = sys.argv[1:]
    runpy.run_path(sys.argv[0], run_name="__main__")
