"""What a step spends its time in: products, attention, norms, experts; torch, C and MegaBlocks. No model."""
