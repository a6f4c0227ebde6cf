"""Labels: methods with suffixes, and numbers as tables show them."""

import pytest

from experiments.labels import method_label, metric_label, number


@pytest.mark.parametrize(
    ("key", "label"),
    [
        ("task_arithmetic", "Task Arithmetic"),
        ("surgery_on_task_arithmetic", "Surgery on Task Arithmetic"),
        ("symerge_block_11", "SyMerge, block 11"),
        ("something_new", "something new"),
    ],
)
def test_method_label(key, label):
    assert method_label(key) == label


def test_metric_label():
    assert metric_label("miou") == "mIoU (%)"
    assert metric_label("f1_score") == "f1 score"


@pytest.mark.parametrize(
    ("value", "std", "text"),
    [
        (93.14, None, "93.1"),
        (93.14, 0.26, "93.1 ± 0.3"),
        (5.04, None, "5.0"),
        (0.4186, None, "0.419"),
        (0.0, None, "0.0"),
        (-3.25, 0.5, "-3.2 ± 0.5"),
        (None, None, "–"),
    ],
)
def test_number(value, std, text):
    assert number(value, std) == text
