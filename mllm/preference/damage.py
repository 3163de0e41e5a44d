"""Which damage the images of a run suffer for the terms that compare with a damaged one."""

import hashlib
from dataclasses import dataclass

from mllm.media.altered import altered_reference
from mllm.media.damage import Damage
from mllm.preference.settings import DamageSettings

SHARES = {"crop": 0.2, "noise": 0.9}


@dataclass(frozen=True)
class Damaging:
    """Names the damaged copy of an image: it follows from the seed and the image's own name, so that pairs of one image share
    its damaged copy, too."""

    settings: DamageSettings
    seed: int

    def reference(self, path: str) -> str:
        """The damaged copy of an image, as `mllm.media.ref` names it."""
        digest = hashlib.sha256(f"{self.seed}/{path}".encode(errors="surrogateescape")).digest()
        kind = self.settings.kind
        damage = Damage(kind, self.settings.share or SHARES[kind], int.from_bytes(digest[:4], "little"))
        return altered_reference(path, damage.change)
