"""transformers: two callbacks for its Trainer
============================================

A small ViT learns digits in transformers' `Trainer`. One callback regularizes its weights, the
other records how many dimensions its layers use, class token and patches apart.
"""

import tempfile

import matplotlib.pyplot as plt
import torch
from transformers import Trainer, TrainingArguments, ViTConfig, ViTForImageClassification

from lightly_collapse.callbacks.transformers import CollapseCallback, OrthogonalityCallback
from lightly_collapse.io.digits import digits_split

digits = digits_split(size=16)
images = [
    {"pixel_values": image.expand(3, -1, -1), "labels": int(label)}
    for image, label in zip(digits.train_images, digits.train_labels, strict=True)
]
torch.manual_seed(0)
config = ViTConfig(
    image_size=16, patch_size=4, hidden_size=48, num_hidden_layers=2, num_attention_heads=2,
    intermediate_size=96, num_labels=10,
)  # fmt: skip
model = ViTForImageClassification(config)
monitor = CollapseCallback(layers=("vit.layernorm",), every_n_steps=10)
arguments = TrainingArguments(
    output_dir=tempfile.mkdtemp(),
    num_train_epochs=3,
    per_device_train_batch_size=64,
    learning_rate=2e-3,
    report_to=[],
    save_strategy="no",
    disable_tqdm=True,
    use_cpu=True,
)
callbacks = [monitor, OrthogonalityCallback(weight=1e-4, target="vit")]
trainer = Trainer(model, arguments, train_dataset=images, callbacks=callbacks)
trainer.train()

# %%
# The readings are in the trainer's history, and in `collapse.csv` in its output folder.

for part in ("cls", "patch"):
    key = f"collapse/vit.layernorm.{part}/effective_rank"
    readings = [(row["step"], row[key]) for row in trainer.state.log_history if key in row]
    plt.plot(*zip(*readings, strict=True), label=part)
    print(f"{part}: effective rank {readings[0][1]:.1f} at first, {readings[-1][1]:.1f} at the end")
plt.xlabel("step")
plt.ylabel("effective rank of 48")
plt.legend()
plt.show()
