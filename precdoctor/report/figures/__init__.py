"""Pictures of a report as inline SVG; text stays text, colours follow the page's theme."""

from precdoctor.report.figures.fever import fever_chart
from precdoctor.report.figures.headroom import headroom_bars, headroom_histogram
from precdoctor.report.figures.losses import loss_curve
from precdoctor.report.figures.number_line import NumberLine, number_line
from precdoctor.report.figures.trials import edq_bars, smoothing, trial_losses

__all__ = [
    "NumberLine",
    "edq_bars",
    "fever_chart",
    "headroom_bars",
    "headroom_histogram",
    "loss_curve",
    "number_line",
    "smoothing",
    "trial_losses",
]
