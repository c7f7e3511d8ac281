"""timm: its two losses under the same names, with and without mixup."""

import timm
import torch
from timm.data import Mixup

from powergrad_ext.integrations.timm import LabelSmoothingCrossEntropy, SoftTargetCrossEntropy

torch.manual_seed(0)
model = timm.create_model("resnet18", num_classes=10)
optimizer = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9)
images, target = torch.randn(8, 3, 64, 64), torch.randint(10, (8,))

loss = LabelSmoothingCrossEntropy(smoothing=0.1, alpha=0.3)(model(images), target)
loss.backward()
optimizer.step()
optimizer.zero_grad()

mixup = Mixup(mixup_alpha=0.2, num_classes=10)
mixed_images, mixed_target = mixup(images, target)
loss = SoftTargetCrossEntropy(alpha=0.3)(model(mixed_images), mixed_target)
loss.backward()
optimizer.step()
print(f"loss with mixup {loss.item():.3f}")
