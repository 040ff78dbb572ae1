"""Training by the reference's recipe: makes, resumes and measures the checkpoints that this tool deploys."""

from __future__ import annotations

from cnet_deploy.training.recipe import Recipe
from cnet_deploy.training.run import train

__all__ = ["Recipe", "train"]
