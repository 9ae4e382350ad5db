"""Memory: what a training recipe holds, byte by byte, estimated and checked against a real step."""

from precdoctor.memory.measuring import memory
from precdoctor.memory.recipes import RECIPES, Recipe, recipe
from precdoctor.memory.result import CATEGORIES, Check, Holding, MemoryReport

__all__ = ["CATEGORIES", "RECIPES", "Check", "Holding", "MemoryReport", "Recipe", "memory", "recipe"]
