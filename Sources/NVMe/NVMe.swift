// An NVMe controller.
