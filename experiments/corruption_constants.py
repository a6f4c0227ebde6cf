"""How strong the corruptions are: severities 1 to 5 of CIFAR-10-C and of ImageNet-C.

Hendrycks and Dietterich, "Benchmarking Neural Network Robustness to Common Corruptions and
Perturbations", 2019. https://arxiv.org/abs/1903.12261
The numbers are those of https://github.com/hendrycks/robustness.
"""

from typing import Any

from experiments.spatter import Liquid

# In the order of the tables: strengths for severities 1 to 5.
CONSTANTS: dict[str, dict[str, tuple[Any, ...]]] = {
    "small": {
        "motion_blur": ((6, 1.0), (6, 1.5), (6, 2.0), (8, 2.0), (9, 2.5)),  # radius, σ in pixels
        "impulse_noise": (0.01, 0.02, 0.03, 0.05, 0.07),  # share of values
        "gaussian_noise": (0.04, 0.06, 0.08, 0.09, 0.10),  # σ, on the scale 0..1
        "pixelate": (0.95, 0.9, 0.85, 0.75, 0.65),  # factor of the edges
        "spatter": (
            Liquid(0.62, 0.1, 0.7, 0.70, 0.5, mud=False),
            Liquid(0.65, 0.1, 0.8, 0.70, 0.5, mud=False),
            Liquid(0.65, 0.3, 1.0, 0.69, 0.5, mud=False),
            Liquid(0.65, 0.1, 0.7, 0.69, 0.6, mud=True),
            Liquid(0.65, 0.1, 0.5, 0.68, 0.6, mud=True),
        ),
        "contrast": (0.75, 0.5, 0.4, 0.3, 0.15),  # factor of the difference to the mean
        "jpeg": (80, 65, 58, 50, 40),  # quality
    },
    "imagenet": {
        "motion_blur": ((10, 3.0), (15, 5.0), (15, 8.0), (15, 12.0), (20, 15.0)),
        "impulse_noise": (0.03, 0.06, 0.09, 0.17, 0.27),
        "gaussian_noise": (0.08, 0.12, 0.18, 0.26, 0.38),
        "pixelate": (0.6, 0.5, 0.4, 0.3, 0.25),
        "spatter": (
            Liquid(0.65, 0.3, 4.0, 0.69, 0.6, mud=False),
            Liquid(0.65, 0.3, 3.0, 0.68, 0.6, mud=False),
            Liquid(0.65, 0.3, 2.0, 0.68, 0.5, mud=False),
            Liquid(0.65, 0.3, 1.0, 0.65, 1.5, mud=True),
            Liquid(0.67, 0.4, 1.0, 0.65, 1.5, mud=True),
        ),
        "contrast": (0.4, 0.3, 0.2, 0.1, 0.05),
        "jpeg": (25, 18, 15, 10, 7),
    },
}
