"""XCiT, ConViT, GC ViT and Twins: every size, every task, any image size."""

