"""Count the memory of tensors on any device, and of tensors without values."""

import weakref
from typing import Any

from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map_only


class PeakMemory(TorchDispatchMode):
    """Counts the bytes of all tensors that are alive at the same time.

    torch's MemTracker finds the same, but only if a network is passed once, and it is many times slower.

    Args:
        held: tensors that exist before. Do not keep this list: it would keep tensors alive that a step frees.
    """

    def __init__(self, held: list[Tensor]):
        super().__init__()
        self.alive: set[int] = set()
        self.bytes, self.peak = 0, 0
        for tensor in held:
            self.add(tensor)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return tree_map_only(Tensor, self.add, func(*args, **(kwargs or {})))

    def add(self, tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        key, size = storage._cdata, storage.nbytes()
        if key not in self.alive:
            self.alive.add(key)
            self.bytes += size
            self.peak = max(self.peak, self.bytes)
            weakref.finalize(storage, self.free, key, size).atexit = False
        return tensor

    def free(self, key: int, size: int) -> None:
        self.alive.remove(key)
        self.bytes -= size


def tensors_of(thing: Any) -> list[Tensor]:
    """Return all tensors of an object: of networks, containers and attributes."""
    if isinstance(thing, Tensor):
        return [thing] if thing.grad is None else [thing, thing.grad]
    if isinstance(thing, nn.Module):
        return [found for part in (*thing.parameters(), *thing.buffers()) for found in tensors_of(part)]
    parts = thing.values() if isinstance(thing, dict) else thing if isinstance(thing, list | tuple) else ()
    return [found for part in (*parts, *getattr(thing, "__dict__", {}).values()) for found in tensors_of(part)]
