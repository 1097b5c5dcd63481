"""A whole conversion as files: the recipe (`recipe`), its run directory (`directory`), the steps (`pipeline`), and what
they will cost (`estimate`)."""

from hybridattn.run.directory import RunDirectory
from hybridattn.run.estimate import Estimate, estimate
from hybridattn.run.pipeline import Pipeline
from hybridattn.run.recipe import Recipe, load_recipe
from hybridattn.run.rehearsal import StepEstimate

__all__ = ["Estimate", "Pipeline", "Recipe", "RunDirectory", "StepEstimate", "estimate", "load_recipe"]
