"""One of several processes that share the work of a step, for the tests beside it.

    python tests/distributed/ranks.py FOLDER RANK

Four processes meet, then the first two of them alone. What each pair or four found is
in FOLDER/<processes>_<rank>.pt.
"""

import copy
import sys
from typing import Any

import deal
import kinds
import torch
from mmengine.model import MMDistributedDataParallel
from torch import distributed
from torch.distributed.device_mesh import init_device_mesh
from torch.nn.parallel import DistributedDataParallel

try:
    from torch.distributed.fsdp import fully_shard
except ImportError:
    # torch < 2.6
    fully_shard = None


def losses(rank: int, ranks: int) -> dict[str, Any]:
    """Return each loss's gradients as DDP leaves them."""
    batch = deal.make_batch()
    found = {}
    for name in deal.names():
        model = DistributedDataParallel(deal.Student(name, batch))
        model(deal.deal(batch, rank, ranks)).backward()
        found[name] = model.module.gradients()
    return found


def queues(rank: int, ranks: int) -> dict[str, Any]:
    """Return the queues of a loss after a step."""
    batch = deal.make_batch()
    student = deal.Student('QueueRelationLoss', batch)
    student(deal.deal(batch, rank, ranks))
    return kinds.queues(student)


def distillers(rank: int, ranks: int) -> dict[str, Any]:
    """Return the gradients of the distillers that must not know processes apart."""
    found = {}
    share = range(rank * 4 // ranks, (rank + 1) * 4 // ranks)
    for name, (build, boxes) in kinds.EXACT.items():
        model = kinds.seeded(build).double()
        wrapped = MMDistributedDataParallel(model, find_unused_parameters=False)
        batch = kinds.images(model, share, boxes, torch.float64)
        kinds.backward(model, wrapped, batch)
        found[name] = copy.deepcopy(kinds.gradients(model))
    return found


def unused(rank: int, ranks: int) -> dict[str, Any]:
    """Return the error of each kind of distiller when one process has no boxes."""
    found = {}
    share = range(rank * 4 // ranks, (rank + 1) * 4 // ranks)
    for name, build in kinds.KINDS.items():
        model = kinds.seeded(build).train()
        wrapped = MMDistributedDataParallel(model, find_unused_parameters=False)
        steps = {}
        for phase in kinds.phases(model):
            batch = kinds.images(model, share, (0, 0, 1, 2))
            kinds.backward(model, wrapped, batch)
            steps[phase] = copy.deepcopy(kinds.gradients(model))
        found[name] = steps
    return found


def sharded(rank: int, ranks: int) -> dict[str, Any]:
    """Return what a step of a sharded distiller gives: loss, gradients, teacher."""
    if fully_shard is None:
        return {}
    model = kinds.seeded(kinds.shardable)
    paths = list(dict(model.named_modules()))
    mesh = init_device_mesh('cpu', (ranks,))
    backbone = model.student.backbone
    for part in (backbone.layer3, backbone.layer4, model.connectors['aligned'], model):
        fully_shard(part, mesh=mesh)
    share = range(rank * 4 // ranks, (rank + 1) * 4 // ranks)
    runs = []
    last = model.teacher.model.auxiliary_head
    last.register_forward_hook(lambda *_: runs.append('auxiliary head'))
    batch = kinds.images(model, share, (), torch.float64)
    loss = kinds.backward(model, model, batch)
    distributed.all_reduce(loss)
    gradients = kinds.gradients(model)
    return dict(
        loss=loss / ranks,
        shares={name: value.to_local().numel() for name, value in gradients.items()},
        gradients={name: value.full_tensor() for name, value in gradients.items()},
        same_paths=list(dict(model.named_modules())) == paths,
        teacher=dict(model.teacher.model.state_dict()),
        beyond_the_records=runs,
    )


def main(folder: str, rank: int) -> None:
    torch.set_num_threads(1)
    for ranks in (4, 2):
        if rank < ranks:
            store = f'file://{folder}/store_{ranks}'
            distributed.init_process_group('gloo', store, rank=rank, world_size=ranks)
            parts = [losses, queues, distillers]
            parts += [unused, sharded] if ranks == 2 else []
            found = {part.__name__: part(rank, ranks) for part in parts}
            torch.save(found, f'{folder}/{ranks}_{rank}.pt')
            distributed.destroy_process_group()


if __name__ == '__main__':
    main(sys.argv[1], int(sys.argv[2]))
