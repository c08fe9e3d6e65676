"""The smallest model of every family, for tests that build many: options by name."""

COLUMN = {"dim": 16, "depth": 4, "num_heads": 2, "out_blocks": (0, 1, 2, 3)}
STAGES = {"depths": (1, 1, 1, 1), "num_heads": (1, 1, 1, 1)}
TOYS = {
    "convit_tiny": COLUMN | {"num_gpsa": 2},
    "deit_tiny": COLUMN,
    "gcvit_xxtiny": STAGES | {"dim": 8},
    "twins_pcpvt_small": STAGES | {"dims": (8, 8, 8, 8)},
    "twins_svt_small": STAGES | {"dims": (8, 8, 8, 8)},
    "xcit_nano_12_p16": COLUMN,
}
