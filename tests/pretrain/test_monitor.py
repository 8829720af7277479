"""The default monitor reads the backbone of every method, those with hidden patches too."""

import csv

import pytest

from lightly_collapse.pretrain.checks import METHODS
from lightly_collapse.pretrain.command import pretrain
from tests.pretrain.test_command import NARROW, SMALL

VIT = ["--model.backbone.image_size", "16", "--model.backbone.patch_size", "4"]
VIT += ["--model.backbone.name", "vit_mini"]
HEAD = ["--model.hidden_dim", "16", "--model.output_dim", "8"]
OWN = {
    "DirectCLR": ["--model.loss_dim", "8"],
    "IBOT": [*HEAD, *VIT],
    "MAE": [*VIT, "--model.decoder_layers", "1", "--model.decoder_dim", "16"],
    "WMSE": [*HEAD, "--model.whitening_size", "16"],
}


@pytest.mark.parametrize("name", METHODS)
@pytest.mark.filterwarnings("error:forward of:UserWarning")
def test_the_default_monitor_reads_the_backbone(tmp_path, name):
    words = ["--model", name, *SMALL, *OWN.get(name, HEAD)]
    words += NARROW if VIT[0] not in words else []
    words += ["--trainer.max_epochs", "1", "--trainer.limit_val_batches", "0"]
    words += ["--model.optimizer.warmup_epochs", "0", "--trainer.logger", "false"]
    words += ["--trainer.callbacks+=lightly_collapse.callbacks.CollapseMonitor"]
    pretrain([*words, "--output", str(tmp_path)])
    with (tmp_path / "collapse.csv").open(newline="") as file:
        (row,) = csv.DictReader(file)
    layer = "backbone.cls" if name in ("IBOT", "MAE") else "backbone"
    assert float(row[f"{layer}/rows"]) >= 64
    assert float(row[f"{layer}/effective_rank"]) > 1
