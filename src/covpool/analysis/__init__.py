"""Why does an approximate root train better? Instruments for any model that pools covariances.

They need PyTorch alone, and leave what they measure as it was. Results are frozen dataclasses with
`to_dict()`.
"""

from covpool.analysis.approximation import ApproximationError, approximation_error
from covpool.analysis.conditioning import (
    Conditioning,
    SpectrumFigures,
    feature_spectrum,
    measure_conditioning,
    spectrum_figures,
)
from covpool.analysis.fidelity import (
    Fidelity,
    feature_fidelity,
    gap_spectra,
    pooled_gradient,
    rank_spectra,
    spectral_fidelity,
)
from covpool.analysis.gradients import (
    GradientBound,
    GradientMagnitudes,
    gradient_bounds,
    gradient_magnitudes,
)
from covpool.analysis.records import Distribution, summarise
from covpool.analysis.smoothness import Smoothness, effective_smoothness
from covpool.analysis.state import pooled_features

__all__ = [
    "ApproximationError",
    "Conditioning",
    "Distribution",
    "Fidelity",
    "GradientBound",
    "GradientMagnitudes",
    "Smoothness",
    "SpectrumFigures",
    "approximation_error",
    "effective_smoothness",
    "feature_fidelity",
    "feature_spectrum",
    "gap_spectra",
    "gradient_bounds",
    "gradient_magnitudes",
    "measure_conditioning",
    "pooled_features",
    "pooled_gradient",
    "rank_spectra",
    "spectral_fidelity",
    "spectrum_figures",
    "summarise",
]
