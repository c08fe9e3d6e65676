"""GC ViT: published weights, and the maps from the authors' and timm's tensor names to ours."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING

from tetravit.structures import Preprocess
from tetravit.weights.base import Adapter, Checkpoint, KeyMap, Rule, Source, drive, menu

if TYPE_CHECKING:
    from torch import Tensor

STAGES, MOST_BLOCKS, MOST_CONVS = 4, 64, 3


def _indices(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The authors' index buffers (N, N): the row of the bias table for each pair of tokens in a window."""
    tables = {}
    for key, table in state.items():
        if key.endswith("relative_position_bias_table"):
            window = (math.isqrt(len(table)) + 1) // 2
            name = key.replace("bias_table", "index")
            import torch  # imported late: the catalogue needs no torch

            from tetravit.layers.relative_bias import spread

            tables[name] = spread(torch.arange(len(table))[:, None], window)[0].contiguous()
    return tables


def _official_conv(theirs: str, ours: str) -> list[Rule]:
    """The tensors of one Fused-MBConv under the authors' names."""
    return [
        Rule(f"{theirs}.conv.0.weight", f"{ours}.depthwise.weight"),
        Rule(f"{theirs}.conv.2.fc.0.weight", f"{ours}.se.fc1.weight"),
        Rule(f"{theirs}.conv.2.fc.2.weight", f"{ours}.se.fc2.weight"),
        Rule(f"{theirs}.conv.3.weight", f"{ours}.pointwise.weight", kernel="theirs"),
    ]


def _timm_conv(theirs: str, ours: str) -> list[Rule]:
    """The tensors of one Fused-MBConv in timm, where each is a convolution."""
    return [
        Rule(f"{theirs}.conv_dw.weight", f"{ours}.depthwise.weight"),
        Rule(f"{theirs}.se.fc1.weight", f"{ours}.se.fc1.weight", kernel="theirs"),
        Rule(f"{theirs}.se.fc2.weight", f"{ours}.se.fc2.weight", kernel="theirs"),
        Rule(f"{theirs}.conv_pw.weight", f"{ours}.pointwise.weight", kernel="theirs"),
    ]


def _global(levels: str) -> list[Rule]:
    """Every second block has keys and values only; both layouts name them as the other blocks name all three."""
    return [
        Rule(f"{levels}.{{i}}.blocks.{j}.attn.qkv.{{p}}", f"backbone.levels.{{i}}.blocks.{j}.attn.kv.{{p}}")
        for j in range(1, MOST_BLOCKS, 2)
    ]


_OURS = "backbone.levels.{i}"

ADAPTERS = {"gcvit": Adapter(KeyMap(Rule("norm{i}.{p}", "pyramid.norms.{i}.{p}")))}

LAYOUTS = {
    "gcvit": {
        "official": KeyMap(
            *_official_conv("patch_embed.conv_down", "backbone.patch_embed.conv_down.conv"),
            *_official_conv("levels.{i}.downsample", f"{_OURS}.downsample.conv"),
            *_official_conv("levels.{i}.q_global_gen.to_q_global.{k}", f"{_OURS}.query.convs.{{k}}"),
            Rule(
                "levels.{i}.blocks.{j}.attn.relative_position_bias_table",
                f"{_OURS}.blocks.{{j}}.attn.bias.table",
            ),
            *_global("levels"),
            Rule("head.{p}", "head.{p}"),
            Rule("{rest}", "backbone.{rest}"),
            dropped=(r".*\.relative_position_index",),
            derived=_indices,
        ),
        "timm": KeyMap(
            Rule("stem.conv1.{p}", "backbone.patch_embed.proj.{p}"),
            *_timm_conv("stem.down.conv_block", "backbone.patch_embed.conv_down.conv"),
            Rule("stem.down.{rest}", "backbone.patch_embed.conv_down.{rest}"),
            *(
                rule
                for i in range(STAGES - 1)  # timm: downsampling starts the next stage
                for rule in (
                    *_timm_conv(
                        f"stages.{i + 1}.downsample.conv_block", f"backbone.levels.{i}.downsample.conv"
                    ),
                    Rule(f"stages.{i + 1}.downsample.{{rest}}", f"backbone.levels.{i}.downsample.{{rest}}"),
                )
            ),
            *(
                rule
                for k in range(MOST_CONVS)
                for rule in _timm_conv(
                    f"stages.{{i}}.global_block.blocks.conv{k + 1}", f"{_OURS}.query.convs.{k}"
                )
            ),
            Rule(
                "stages.{i}.blocks.{j}.attn.rel_pos.relative_position_bias_table",
                f"{_OURS}.blocks.{{j}}.attn.bias.table",
            ),
            *_global("stages"),
            Rule("stages.{i}.blocks.{j}.ls1.gamma", f"{_OURS}.blocks.{{j}}.gamma1"),
            Rule("stages.{i}.blocks.{j}.ls2.gamma", f"{_OURS}.blocks.{{j}}.gamma2"),
            Rule("stages.{i}.blocks.{j}.{rest}", f"{_OURS}.blocks.{{j}}.{{rest}}"),
            Rule("stages.3.norm.{p}", "backbone.norm.{p}"),
            Rule("head.fc.{p}", "head.{p}"),
        ),
    }
}

HUB = "https://huggingface.co/nvidia/GCViT/resolve/main"
IN1K, IN21K = "ImageNet-1k", "ImageNet-21k, then ImageNet-1k"

# Model, tag, training data, published top-1, crop, image size; the middle of the file name on the Hugging Face hub,
# and the key of its copy on Google Drive, where they exist. The two largest models squash an image into the square
# instead of cropping it.
# fmt: off
FILES = (
    ("gcvit_xxtiny",   "in1k",       IN1K,  79.9, 1.0,   224, "1k_xxtiny",      "1apSIWQCa5VhWLJws8ugMTuyKzyayw4Eh"),
    ("gcvit_xtiny",    "in1k",       IN1K,  82.0, 0.875, 224, "1k_xtiny",       "1OgSbX73AXmE0beStoJf2Jtda1yin9t9m"),
    ("gcvit_tiny",     "in1k",       IN1K,  83.5, 1.0,   224, "1k_tiny",        "11M6AsxKLhfOpD12Nm_c7lOvIIAn9cljy"),
    ("gcvit_tiny2",    "in1k",       IN1K,  83.7, 0.875, 224, "1k_tiny2",       "1cTD8VemWFiwAx0FB9cRMT-P4vRuylvmQ"),
    ("gcvit_small",    "in1k",       IN1K,  84.3, 0.875, 224, "1k_small",       "1Nn6ABKmYjylyWC0I41Q3oExrn4fTzO9Y"),
    ("gcvit_small2",   "in1k",       IN1K,  84.8, 0.875, 224, "1k_small2",      "1E5TtYpTqILznjBLLBTlO5CGq343RbEan"),
    ("gcvit_base",     "in1k",       IN1K,  85.0, 1.0,   224, "1k_base",        "1PF7qfxKLcv_ASOMetDP75n8lC50gaqyH"),
    ("gcvit_large",    "in1k",       IN1K,  85.7, 1.0,   224, "1k_large",       "1Lkz1nWKTwCCUR7yQJM6zu_xwN1TR0mxS"),
    ("gcvit_large",    "in21k_in1k", IN21K, 86.6, 1.0,   224, "",               "1maGDr6mJkLyRTUkspMzCgSlhDzNRFGEf"),
    ("gcvit_large_384","in21k_in1k", IN21K, 87.4, 1.0,   384, "21k_large_384",  "1P-IEhvQbJ3FjnunVkM1Z9dEpKw-tsuWv"),
    ("gcvit_large_512","in21k_in1k", IN21K, 87.6, 1.0,   512, "21k_large_512",  ""),
)
# fmt: on

CHECKPOINTS = menu(
    *(
        Checkpoint(
            model,
            tag,
            sources=tuple(
                Source(url, "official", "state_dict")
                for url in (file and f"{HUB}/gcvit_{file}.pth.tar", key and drive(key))
                if url
            ),
            data=data,
            licence="CC-BY-NC-SA-4.0",
            commercial=False,
            preprocess=Preprocess(size=size, crop=crop, mode="center" if size == 224 else "squash"),
            published={"top1": top1},
            published_in="NVlabs/GCVit@8e1941f README.md",
        )
        for model, tag, data, top1, crop, size, file, key in FILES
    )
)
