"""Names for people: how methods, metrics and table cells are written in tables and figures."""

METHODS = {
    "pretrained": "Pre-trained",
    "individual": "Individual experts",
    "weight_average": "Weight averaging",
    "task_arithmetic": "Task Arithmetic",
    "ties": "TIES",
    "magmax": "MagMax",
    "pcb": "PCB",
    "lines": "LiNeS",
    "tall_masks": "TALL masks",
    "consensus": "Consensus TA",
    "tsv_m": "TSV-M",
    "tsv_c": "TSV-C",
    "iso_c": "Iso-C",
    "iso_cts": "Iso-CTS",
    "emr": "EMR",
    "lot": "LOT",
    "breadcrumbs": "Breadcrumbs",
    "dare": "DARE",
    "slerp": "SLERP",
    "fisher": "Fisher",
    "regmean": "RegMean",
    "adamerging": "AdaMerging",
    "adamerging_taskwise": "AdaMerging, task-wise",
    "adamerging_sequential": "AdaMerging, sequential",
    "adamerging_plus_plus": "AdaMerging++",
    "surgery": "Surgery",
    "probsurgery": "ProbSurgery",
    "wemoe": "WEMoE",
    "symerge": "SyMerge",
    "symerge_coefficients": "SyMerge, λ only",
    "symerge_head": "SyMerge, head only",
    "symerge_early": "SyMerge, early blocks",
    "symerge_late": "SyMerge, late blocks",
    "symerge_all": "SyMerge, all blocks",
    "symerge_joint": "SyMerge, one step for all",
    "true_labels": "To the true labels",
    "cross_task": "Other tasks' encoders",
    "pairwise_average": "Means of two encoders",
    "entropy_joint": "Entropy, λ and heads",
    "task_arithmetic_recalibrate": "Task Arithmetic, recalibrated",
    "symerge_recalibrate": "SyMerge, recalibrated",
    "symerge_merge_stats": "SyMerge, merged statistics",
    "symerge_pretrained_stats": "SyMerge, statistics of θ₀",
}

METRICS = {
    "accuracy": "accuracy (%)",
    "held_out_accuracy": "held-out accuracy (%)",
    "corrupted_accuracy": "accuracy on corrupted images (%)",
    "cross_accuracy": "accuracy under other tasks' encoders (%)",
    "supervisor_accuracy": "the supervisor's accuracy (%)",
    "ece": "calibration error (%)",
    "matthews": "Matthews correlation (%)",
    "pearson_spearman": "mean of Pearson and Spearman correlation (%)",
    "f1": "F1 (%)",
    "miou": "mIoU (%)",
    "pixel_accuracy": "pixel accuracy (%)",
    "depth_abs_error": "absolute depth error (m)",
    "depth_rel_error": "relative depth error",
    "normal_mean_angle": "mean normal angle (°)",
}

# What a merged model is compared with; never the best row of a table.
REFERENCES = frozenset({"pretrained", "individual", "true_labels"})


def method_label(key: str) -> str:
    """`task_arithmetic` → `Task Arithmetic`; `surgery_on_ties` → `Surgery on TIES`."""
    if key in METHODS:
        return METHODS[key]
    method, at, values = key.partition("@")
    if at:  # a point of a sweep, `symerge@lr=0.01,init=0.3`
        values = values.translate({ord("="): " ", ord(","): ", ", ord("_"): " "})
        return f"{method_label(method)}, {values}"
    method, on, base = key.partition("_on_")
    if on:
        return f"{method_label(method)} on {method_label(base)}"
    if key.startswith("symerge_from_"):
        return f"SyMerge from {key.removeprefix('symerge_from_').replace('_', ' ')}"
    if key.startswith("symerge_block_"):
        return f"SyMerge, block {key.removeprefix('symerge_block_')}"
    if key.endswith("_adapted_heads"):
        return f"{method_label(key.removesuffix('_adapted_heads'))}, adapted heads"
    return key.replace("_", " ")


def metric_label(key: str) -> str:
    """`miou` → `mIoU (%)`; `accuracy_jpeg` → `accuracy, jpeg (%)`."""
    kind = key.removeprefix("accuracy_")
    if kind != key:
        return f"accuracy, {kind.replace('_', ' ')} (%)"
    return METRICS.get(key, key.replace("_", " "))


def number(value: float | None, std: float | None = None) -> str:
    """`93.1`, `93.1 ± 0.2`, or a dash where there is no value; small errors keep three digits."""
    if value is None:
        return "–"
    digits = 1 if abs(value) >= 1 or value == 0 else 3
    text = f"{value:.{digits}f}"
    return text if std is None else f"{text} ± {std:.{digits}f}"
