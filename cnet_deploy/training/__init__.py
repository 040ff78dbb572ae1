"""The reference's training recipe, so that the checkpoints this tool deploys can be made, resumed and measured with it."""

from __future__ import annotations

from cnet_deploy.training.recipe import Recipe
from cnet_deploy.training.run import train

__all__ = ["Recipe", "train"]
