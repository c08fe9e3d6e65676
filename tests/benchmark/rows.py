"""A row of a contest that tests change as they need."""

from tetravit.benchmark.against import Contest

ROW = Contest(
    model="deit_tiny",
    contender="timm",
    mode="predict",
    size=224,
    batch=8,
    dtype="float32",
    device="a processor",
    threads=2,
    macs=1,
    images_per_s=10.0,
    spread=0.012,
    ratio=1.0,
    share=0.4,
    peak_mib=None,
    product_tflops=0.2,
    copy_gb_s=9.0,
    rounds=3,
    failed="",
    torch="2.15.0",
    python="3.11",
    date="2026-11-21",
)
