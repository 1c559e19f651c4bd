"""One process of a data-parallel step; `test_distributed` starts two of them."""

import sys
from pathlib import Path

import torch
import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel

import mlot
import mlot.nn


def batch() -> dict[str, torch.Tensor]:
    g = torch.Generator().manual_seed(0)
    student_labels = torch.randint(20, (3, 7), generator=g)
    teacher_labels = torch.randint(30, (3, 9), generator=g)
    student_labels[0, :3] = -100
    teacher_labels[0, :4] = -100
    return {
        "inputs": torch.randn(3, 7, 8, generator=g, dtype=torch.float64),
        "teacher_logits": torch.randn(3, 9, 30, generator=g, dtype=torch.float64),
        "student_labels": student_labels,
        "teacher_labels": teacher_labels,
    }


def model() -> torch.nn.Linear:
    torch.manual_seed(1)
    return torch.nn.Linear(8, 20, dtype=torch.float64)


def step(
    student: torch.nn.Module, part: dict[str, torch.Tensor], items: torch.Tensor, scale: int
) -> torch.Tensor:
    criterion = mlot.nn.MultiLevelOTLoss(mlot.MultiLevelOTConfig(k=6))
    rest = {name: value for name, value in part.items() if name != "inputs"}
    loss = criterion(student(part["inputs"]), **rest, num_items_in_batch=items)
    (loss * scale).backward()  # the processes' gradients are averaged
    return loss.detach()


def main(rank: int, world: int, folder: Path) -> None:
    dist.init_process_group("gloo", init_method=f"file://{folder / 'meeting'}", rank=rank, world_size=world)
    whole = batch()
    mine = slice(0, 1) if rank == 0 else slice(1, 3)  # uneven shares
    part = {name: value[mine] for name, value in whole.items()}
    items = (part["student_labels"][:, 1:] != -100).sum().double()
    dist.all_reduce(items)
    student = DistributedDataParallel(model())
    loss = step(student, part, items, world)
    dist.all_reduce(loss)
    if rank == 0:
        torch.save((loss, [p.grad for p in student.parameters()]), folder / "found.pt")
    dist.destroy_process_group()


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]), Path(sys.argv[3]))
