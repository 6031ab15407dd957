"""For tests alone: let torchvision, which PyPI builds for CUDA, be imported beside a torch without it.

Its compiled operators do not load there; importing it needs the names of two, and its transforms of pictures need none.
"""

import torch

if torch.version.cuda is None:
    names = torch.library.Library("torchvision", "DEF")
    for name in ("nms", "qnms"):
        names.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
