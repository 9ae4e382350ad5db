"""User ids travel through half precision together with the other features, and become other ids."""

import argparse

import torch
from torch import nn
from torch.nn import functional as F

parser = argparse.ArgumentParser()
parser.add_argument("--healthy", action="store_true")
args = parser.parse_args()

torch.manual_seed(0)
torch.set_num_threads(1)

USERS = 20_000
users = torch.randint(USERS - 8, (4096,))
taste, price = torch.randn(USERS, 4), torch.rand(4096)
labels = taste[users].argmax(1)


class Model(nn.Module):
    def __init__(self):
        super().__init__()
        self.embedding, self.head = nn.Embedding(USERS, 32), nn.Linear(33, 4)

    def forward(self, features):
        who = self.embedding(features[:, 0].long())
        return self.head(torch.cat([who, features[:, 1:].float()], 1))


columns = torch.stack([users.double(), price.double()], 1)
table = columns.to(torch.float32 if args.healthy else torch.float16)  # expect: PD508 forward embedding
model = Model()
optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
for step in range(40):
    rows = torch.randint(4096, (256,))
    loss = F.cross_entropy(model(table[rows]), labels[rows])
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    if step % 10 == 0:
        print(f"step {step}  loss {loss.item():.4f}")
