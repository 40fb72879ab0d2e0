// Virtio devices and their transports.
