"""Pretrain a ResNet on a list of photographs by SimCLR, with or without orthogonality.

The first of the three commands from photographs to AP; see detection/README.md.

    python -m detection.pretrain_photographs --root bccd_voc --split train --output simclr-0.ckpt
    python -m detection.pretrain_photographs --root bccd_voc --split train --orthogonality 1e-3 \
        --output so-0.ckpt
"""

import argparse
import time
from pathlib import Path
from typing import Any

import pytorch_lightning
import torch
import torchvision
from lightly.loss import NTXentLoss
from lightly.models.modules import SimCLRProjectionHead
from lightly.transforms.simclr_transform import SimCLRTransform
from PIL import Image
from torch import Tensor, nn
from torch.optim.lr_scheduler import OneCycleLR
from torch.utils.data import DataLoader, Dataset

from lightly_collapse.loss import OrthogonalityRegularizer


class Photographs(Dataset[Any]):
    """The images of one split of a VOC-format folder, decoded and scaled down once.

    Args:
        root: folder with JPEGImages and ImageSets/Main.
        split: name of a list in ImageSets/Main.
        short_side: pixels of the shorter side after scaling.
        transform: makes the views of an image.
    """

    def __init__(self, root: Path, split: str, short_side: int, transform: SimCLRTransform) -> None:
        self.transform = transform
        names = (root / "ImageSets" / "Main" / f"{split}.txt").read_text().splitlines()
        resize = torchvision.transforms.Resize(short_side)
        self.images = []
        for name in filter(None, map(str.strip, names)):
            with Image.open(root / "JPEGImages" / f"{name}.jpg") as image:
                self.images.append(resize(image.convert("RGB")))

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> Any:
        return self.transform(self.images[index])


class SimCLR(pytorch_lightning.LightningModule):
    """Lightly's SimCLR, plus an orthogonality penalty on the backbone's weights.

    Args:
        depth: of the ResNet.
        orthogonality: weight of the SO penalty; 0 leaves it out.
        learning_rate: the highest AdamW learning rate.
        temperature: of NT-Xent.
    """

    def __init__(
        self, depth: int, orthogonality: float, learning_rate: float, temperature: float
    ) -> None:
        super().__init__()
        self.save_hyperparameters()
        resnet = getattr(torchvision.models, f"resnet{depth}")()
        width = resnet.fc.in_features
        resnet.fc = nn.Identity()
        self.backbone = resnet
        self.projection_head = SimCLRProjectionHead(width, width, 128)
        self.criterion = NTXentLoss(temperature=temperature)
        self.regularizer = (
            OrthogonalityRegularizer(self.backbone, kind="so", weight=orthogonality)
            if orthogonality
            else None
        )

    def training_step(self, batch: Any, batch_index: int) -> Tensor:
        """NT-Xent of the two views, plus the penalty."""
        z0, z1 = (self.projection_head(self.backbone(view)) for view in batch)
        loss: Tensor = self.criterion(z0, z1)
        self.log("loss", loss, prog_bar=True, on_epoch=True, on_step=False)
        if self.regularizer is not None:
            penalty = self.regularizer()
            self.log("penalty", penalty, prog_bar=True, on_epoch=True, on_step=False)
            loss = loss + penalty
        return loss

    def on_train_epoch_end(self) -> None:
        """One line an epoch."""
        values = " ".join(
            f"{name} {value:.4f}" for name, value in self.trainer.callback_metrics.items()
        )
        print(f"epoch {self.current_epoch + 1}: {values}", flush=True)

    def configure_optimizers(self) -> Any:
        """AdamW with one warm-up and cosine cycle."""
        rate = self.hparams["learning_rate"]
        optimizer = torch.optim.AdamW(self.parameters(), lr=rate, weight_decay=1e-4)
        steps = int(self.trainer.estimated_stepping_batches)
        scheduler = OneCycleLR(optimizer, max_lr=rate, total_steps=steps, pct_start=0.1)
        return [optimizer], [{"scheduler": scheduler, "interval": "step"}]


def main() -> None:
    """Parse, train, save."""
    parser = argparse.ArgumentParser(
        description="Pretrain a ResNet on a list of photographs by SimCLR."
    )
    parser.add_argument("--root", type=Path, required=True, help="a VOC-format folder")
    parser.add_argument("--split", default="train")
    parser.add_argument("--output", type=Path, required=True, help="the checkpoint to write")
    parser.add_argument("--orthogonality", type=float, default=0.0, help="weight of SO")
    parser.add_argument("--depth", type=int, default=18, choices=(18, 34, 50, 101, 152))
    parser.add_argument("--epochs", type=int, default=50)
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--size", type=int, default=64, help="of the crops, in pixels")
    parser.add_argument("--short-side", type=int, default=160, help="of the scaled photographs")
    parser.add_argument("--min-scale", type=float, default=0.5, help="smallest part of the image")
    parser.add_argument("--color-jitter", type=float, default=0.4, help="its strength")
    parser.add_argument("--learning-rate", type=float, default=1e-3)
    parser.add_argument("--temperature", type=float, default=0.2)
    parser.add_argument("--workers", type=int, default=0)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    started = time.perf_counter()
    pytorch_lightning.seed_everything(arguments.seed, verbose=False)
    # Weaker than ImageNet's: in stained cells colour carries the meaning, and photographs of one
    # slide look alike, so that half an image and its full colours are needed to tell them apart.
    transform = SimCLRTransform(
        input_size=arguments.size,
        min_scale=arguments.min_scale,
        cj_strength=arguments.color_jitter,
        random_gray_scale=0.0,
        gaussian_blur=0.2,
        vf_prob=0.5,
    )
    photographs = Photographs(arguments.root, arguments.split, arguments.short_side, transform)
    if len(photographs) < arguments.batch_size:
        parser.error(f"--batch-size {arguments.batch_size}: only {len(photographs)} photographs")
    loader: DataLoader[Any] = DataLoader(
        photographs,
        batch_size=arguments.batch_size,
        shuffle=True,
        drop_last=True,
        num_workers=arguments.workers,
    )
    trainer = pytorch_lightning.Trainer(
        max_epochs=arguments.epochs,
        logger=False,
        enable_checkpointing=False,
        enable_model_summary=False,
        enable_progress_bar=False,
    )
    model = SimCLR(
        arguments.depth, arguments.orthogonality, arguments.learning_rate, arguments.temperature
    )
    trainer.fit(model, loader)
    trainer.save_checkpoint(arguments.output)
    print(f"wrote {arguments.output} after {time.perf_counter() - started:.0f} s")


if __name__ == "__main__":
    main()
