"""The report's figures, each as inline SVG."""

from hybridattn.report.figures.cost import cost_curve
from hybridattn.report.figures.frontier import frontier
from hybridattn.report.figures.heatmap import recall_map
from hybridattn.report.figures.layers import importance
from hybridattn.report.figures.losses import losses
from hybridattn.report.figures.quality import quality

__all__ = ["cost_curve", "frontier", "importance", "losses", "quality", "recall_map"]
