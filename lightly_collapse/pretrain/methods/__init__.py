"""The methods, a file each; a file holds what sets its method apart and nothing else."""

from lightly_collapse.pretrain.methods.barlow_twins import BarlowTwins
from lightly_collapse.pretrain.methods.byol import BYOL
from lightly_collapse.pretrain.methods.dino import DINO
from lightly_collapse.pretrain.methods.directclr import DirectCLR
from lightly_collapse.pretrain.methods.mae import MAE
from lightly_collapse.pretrain.methods.moco import MoCo
from lightly_collapse.pretrain.methods.simclr import SimCLR
from lightly_collapse.pretrain.methods.simsiam import SimSiam
from lightly_collapse.pretrain.methods.swav import SwAV
from lightly_collapse.pretrain.methods.vicreg import VICReg

__all__ = [
    "BYOL",
    "DINO",
    "MAE",
    "BarlowTwins",
    "DirectCLR",
    "MoCo",
    "SimCLR",
    "SimSiam",
    "SwAV",
    "VICReg",
]
