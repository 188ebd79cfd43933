"""Fast inference: folds, engines, precision, export."""

from headstart.engine.export import export
from headstart.engine.model import OptimizedModel, holds, is_optimized, load
from headstart.engine.optimize import optimize

__all__ = ["OptimizedModel", "export", "holds", "is_optimized", "load", "optimize"]
