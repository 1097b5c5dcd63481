"""A whole conversion as files: the recipe (`recipe`), its run directory (`directory`) and the steps (`pipeline`)."""

from hybridattn.run.directory import RunDirectory
from hybridattn.run.pipeline import Pipeline
from hybridattn.run.recipe import Recipe, load_recipe

__all__ = ["Pipeline", "Recipe", "RunDirectory", "load_recipe"]
