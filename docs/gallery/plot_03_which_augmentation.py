"""Which augmentation is to blame
==============================

Directions along which an augmentation moves an image further than images differ from one another
are lost (Jing et al., 2022). :func:`~lightly_collapse.theory.predict_collapse` estimates both
covariances before any training, and leaves out each step of the transform in turn.
"""

import matplotlib.pyplot as plt
import torch
from lightly.transforms.multi_view_transform import MultiViewTransform
from torchvision.transforms import v2

from lightly_collapse.io.digits import digits_split
from lightly_collapse.theory import predict_collapse

images = list(digits_split(size=16).train_images[:600])


class Noise(torch.nn.Module):
    """Gaussian noise on every pixel, as strong as the digits themselves."""

    def forward(self, image):
        return image + 0.5 * torch.randn_like(image)


steps = v2.Compose([v2.RandomAffine(10, (0.05, 0.05)), v2.ColorJitter(0.2), Noise()])
transform = MultiViewTransform([steps, steps])
torch.manual_seed(0)
prediction = predict_collapse(images, transform, n_images=600, n_views=4, pool=8, resamples=10)
print(f"{prediction.collapsed} of {len(prediction.spectrum)} dimensions are predicted to collapse")

# %%
# The predicted spectrum with the whole transform, and without one of its steps. The step whose line
# lies highest costs most.

s = prediction.spectrum
plt.semilogy(s / s[0], color="black", label="all steps")
for step in prediction.leave_one_out:
    plt.semilogy(step.spectrum / step.spectrum[0], label=f"without {step.name}")
plt.ylim(1e-3, 2)
plt.xlabel("index")
plt.ylabel("predicted singular value / largest")
plt.legend()
plt.show()
