"""What the command line says about hardware and placement."""

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class Options:
    """Where something is None, the plan decides."""

    devices: int | None = None
    nodes: int = 1
    micro_batch: int | None = None
    checkpointing: Literal["on", "off"] | None = None
    attention: str | None = None
    prefer: Literal["plain", "offload"] | None = None
    sharding: str | None = None
    """A file of ds_configs by its name, a file of one's own, or `none`."""
    loss_chunk: int | Literal["off"] | None = None
    """Targets whose logits exist at a time."""
    rendezvous: Literal["static", "c10d"] = "static"
    """How several machines find each other."""

    @property
    def is_settled(self) -> bool:
        """Whether nothing is left to the ladder."""
        return None not in (self.micro_batch, self.checkpointing, self.sharding, self.loss_chunk)
