"""More than one process: counts for data parallelism, weights of FSDP2, vocabularies sharded over processes.

**Data parallelism.** Every process has its own sequences. A mean over positions is a mean over those of all
processes only if all divide by the same number, and DDP and FSDP2 average gradients over processes. Hence

.. code-block:: python

    criterion = mlot.nn.MultiLevelOTLoss()
    items = mlot.distributed.average_count(mlot.mask_from_labels(student_labels))
    loss = criterion(logits, teacher_logits, student_labels, teacher_labels, num_items_in_batch=items)
    loss.backward()  # the averaged gradient is that of one process with all sequences

however unevenly the sequences are spread, a process without any included: it takes part with an empty batch.

**A head under FSDP2.** `unsharded` turns a sharded parameter into one that a `mlot.LinearHead` can use.

**A sharded vocabulary.** `VocabShard` is a source for `mlot.select`, `mlot.multi_level_ot` and
`mlot.nn.MultiLevelOTLoss` where every process holds some columns of the logits, or some rows of the head.

All need torch.
"""

from mlot.distributed._counts import average_count, global_count
from mlot.distributed._fsdp import unsharded
from mlot.distributed._shard import VocabShard

__all__ = ["VocabShard", "average_count", "global_count", "unsharded"]
