"""How the metrics of dense prediction are printed: their units and digits."""

# Name → unit; a relative error is a ratio.
UNITS = {
    "miou": "%",
    "pixel_accuracy": "%",
    "depth_abs_error": "m",
    "depth_rel_error": "",
    "normal_mean_angle": "°",
}


def number(metric: str, value: float | None) -> str:
    """Returns a value with two digits, of depths with four; a dash for None."""
    if value is None:
        return "–"
    return f"{value:.4f}" if metric.startswith("depth") else f"{value:.2f}"
