"""Names for the types that signatures speak of."""

from typing import Any, Literal, TypeAlias

#: A NumPy array, a torch tensor, or whatever array type a registered backend serves.
Array: TypeAlias = Any

ArrayKind: TypeAlias = Literal["float", "integer", "bool", "other"]
CostKind: TypeAlias = Literal["l1", "log"]
Matching: TypeAlias = Literal["optimal", "greedy", "rank", "sinkhorn", "text"]
HardMatching: TypeAlias = Literal["optimal", "greedy", "rank"]
Reading: TypeAlias = Literal["canonical", "longest"]
Kept: TypeAlias = Literal["traces", "likeliest", "targets"]
Tail: TypeAlias = Literal["fitted", "zero", "renormalize", "uniform"]
Reduction: TypeAlias = Literal["none", "sum", "mean"]
