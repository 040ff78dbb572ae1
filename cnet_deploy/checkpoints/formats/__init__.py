"""What a file of weights holds, whatever its container: torch's zip, torch's legacy row of pickles, safetensors. No torch is needed.

Whatever is wrong with a file raises ValueError, zipfile's errors or pickle's; who reads it says which file it was.
"""

from __future__ import annotations

from typing import Any

from cnet_deploy.checkpoints.formats.torch_legacy import _Legacy
from cnet_deploy.checkpoints.formats.torch_zip import _Zip, is_zip


def read_pickled(data: bytes) -> Any:
    """The object that torch.save wrote, its tensors as StoredTensor. ``pickles.examine`` must have found nothing in it before."""
    return _Zip(data).read() if is_zip(data) else _Legacy(data).read()
