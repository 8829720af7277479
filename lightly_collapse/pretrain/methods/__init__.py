"""The pretraining methods: one file for each, with its heads and loss; the rest is in base."""

from lightly_collapse.pretrain.methods.barlow_twins import BarlowTwins
from lightly_collapse.pretrain.methods.byol import BYOL
from lightly_collapse.pretrain.methods.dcl import DCL
from lightly_collapse.pretrain.methods.dino import DINO
from lightly_collapse.pretrain.methods.directclr import DirectCLR
from lightly_collapse.pretrain.methods.frossl import FroSSL
from lightly_collapse.pretrain.methods.ibot import IBOT
from lightly_collapse.pretrain.methods.lejepa import LeJEPA
from lightly_collapse.pretrain.methods.mae import MAE
from lightly_collapse.pretrain.methods.mmcr import MMCR
from lightly_collapse.pretrain.methods.moco import MoCo
from lightly_collapse.pretrain.methods.moco_v3 import MoCoV3
from lightly_collapse.pretrain.methods.nnbyol import NNBYOL
from lightly_collapse.pretrain.methods.nnclr import NNCLR
from lightly_collapse.pretrain.methods.simclr import SimCLR
from lightly_collapse.pretrain.methods.simsiam import SimSiam
from lightly_collapse.pretrain.methods.swav import SwAV
from lightly_collapse.pretrain.methods.tico import TiCo
from lightly_collapse.pretrain.methods.vicreg import VICReg
from lightly_collapse.pretrain.methods.wmse import WMSE

__all__ = [
    "BYOL",
    "DCL",
    "DINO",
    "IBOT",
    "MAE",
    "MMCR",
    "NNBYOL",
    "NNCLR",
    "WMSE",
    "BarlowTwins",
    "DirectCLR",
    "FroSSL",
    "LeJEPA",
    "MoCo",
    "MoCoV3",
    "SimCLR",
    "SimSiam",
    "SwAV",
    "TiCo",
    "VICReg",
]
