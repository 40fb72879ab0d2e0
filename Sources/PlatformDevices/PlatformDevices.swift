// Platform devices, and the DMA test engine.
