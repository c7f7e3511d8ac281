"""Mixed precision and gradient accumulation, on a GPU if there is one."""

import torch

import powergrad_ext as pg

torch.manual_seed(0)
device = "cuda" if torch.cuda.is_available() else "cpu"
dtype = torch.float16 if device == "cuda" else torch.bfloat16
model = torch.nn.Sequential(torch.nn.Linear(20, 64), torch.nn.ReLU(), torch.nn.Linear(64, 4))
model.to(device)
optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
scaler = torch.amp.GradScaler(device, enabled=dtype == torch.float16)
micro_batches = 4

for _ in range(10):
    optimizer.zero_grad()
    for _ in range(micro_batches):
        features = torch.randn(64, 20, device=device)
        target = torch.randint(4, (64,), device=device)
        with torch.autocast(device, dtype):
            logits = model(features)
            # Half-precision logits are read as they are; the loss is float32.
            loss = pg.cross_entropy(logits, target, alpha=0.3) / micro_batches
        scaler.scale(loss).backward()
    scaler.step(optimizer)
    scaler.update()
print(f"last micro-batch: {loss.item() * micro_batches:.3f}")
